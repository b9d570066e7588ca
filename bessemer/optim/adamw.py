"""AdamW, through torch's fused kernel."""

from typing import Any

import torch

from bessemer.core.ranges import Betas, NonNegative, Positive


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), torch's fused kernel.

    State: two numbers of the parameter's type per parameter. Unlike the other rules here it takes gradients as they come: to look at them first
    costs a tenth of the update, and the loop's guard stops a step whose gradient is not finite.
    """

    def __init__(
        self, params: Any, *, lr: NonNegative = 1e-3, betas: Betas = [0.9, 0.95], eps: Positive = 1e-8, weight_decay: NonNegative = 0.1
    ) -> None:
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True)
