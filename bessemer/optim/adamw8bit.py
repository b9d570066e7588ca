"""AdamW with quantised states, 8 bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import Betas, NonNegative, Positive
from bessemer.optim._blocks import Packed, States, adamw
from bessemer.optim._rule import Group, Rule, gradients, sweep


class AdamW8bit(Rule):
    """AdamW whose two states are held in 8 bits, in blocks of 256 that share a scale (Dettmers et al. 2022).

    Claim: AdamW's quality with a quarter of its state. The update is computed in float32 before the states are rounded.
    State: 2.03125 bytes per parameter; tensors under 4,096 numbers or not a multiple of 256 keep two full numbers.

    Args:
        weight_decay: decoupled.
    """

    STATES: States = "8bit"

    def __init__(
        self, params: Any, *, lr: NonNegative = 1e-3, betas: Betas = [0.9, 0.95], eps: Positive = 1e-8, weight_decay: NonNegative = 0.1
    ) -> None:
        self.betas, self.eps = betas, eps
        super().__init__(params, lr, weight_decay, self.STATES)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """AdamW on decoded states, in the order of torchao's rule, so that the same numbers round to the same codes."""
        (b1, b2), shrink = self.betas, 1.0 - group["lr"] * group["weight_decay"]
        for step, stepping in self.counted(members):
            size, root = group["lr"] / (1.0 - b1**step), math.sqrt(1.0 - b2**step)

            def move(p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor], size: float = size, root: float = root) -> None:
                torch._foreach_lerp_(m, g, 1.0 - b1)
                squares = torch._foreach_mul(g, g)
                torch._foreach_lerp_(v, squares, 1.0 - b2)
                divisor = torch._foreach_sqrt(v)
                torch._foreach_div_(divisor, root)
                torch._foreach_add_(divisor, self.eps)
                torch._foreach_mul_(p, shrink)
                torch._foreach_addcdiv_(p, m, divisor, value=-size)

            first, second = self.column(stepping, "exp_avg"), self.column(stepping, "exp_avg_sq", signed=False)
            numbers = [1.0 - b1, 1.0 - b2, root, self.eps, shrink, -size]
            rows = zip(stepping, gradients(stepping), first, second, strict=True)
            rest = [row for row in rows if not (isinstance(row[2], Packed) and isinstance(row[3], Packed) and adamw(*row, numbers))]  # type: ignore[arg-type]
            sweep(move, *zip(*rest, strict=True))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two states."""
        return 2 * self.column_bytes(torch.Size(shape).numel(), width)
