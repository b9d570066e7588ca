"""Plain stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import Decay, NonNegative
from bessemer.optim._blocks import States
from bessemer.optim._rule import Group, Rule, gradients, sweep


class Sgd(Rule):
    """Gradient descent with heavy-ball momentum, the baseline of memory (Robbins and Monro 1951; Polyak 1964).

    State: one number of the parameter's type per parameter, none without momentum. Its best rate does not carry over between widths here.

    Args:
        momentum: of the running sum of gradients.
        weight_decay: decoupled.
        states: how the momentum is held.
    """

    transfer = "orthogonal"

    def __init__(
        self, params: Any, *, lr: NonNegative = 0.1, momentum: Decay = 0.9, weight_decay: NonNegative = 0.0, states: States = "full"
    ) -> None:
        self.momentum = momentum
        super().__init__(params, lr, weight_decay, states)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """m = momentum m + g;  p -= lr m."""
        rate, shrink = group["lr"], 1.0 - group["lr"] * group["weight_decay"]

        def plain(p: list[Tensor], g: list[Tensor]) -> None:
            torch._foreach_mul_(p, shrink)
            torch._foreach_add_(p, g, alpha=-rate)

        def heavy(p: list[Tensor], g: list[Tensor], m: list[Tensor]) -> None:
            torch._foreach_mul_(m, self.momentum)
            torch._foreach_add_(m, g)
            plain(p, m)

        if self.momentum:
            sweep(heavy, members, gradients(members), self.column(members, "momentum"))
        else:
            sweep(plain, members, gradients(members))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """The momentum."""
        return self.column_bytes(torch.Size(shape).numel(), width) if self.momentum else 0
