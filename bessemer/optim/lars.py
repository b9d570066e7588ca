"""LARS: momentum, each matrix's rate in proportion to its norm over its gradient's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import Decay, NonNegative, Positive
from bessemer.optim._blocks import States
from bessemer.optim._rule import Group, Rule, matrices, sweep


class Lars(Rule):
    """Momentum with a rate per matrix in proportion to its norm over its gradient's (You et al. 2017, "Large Batch Training").

    Claim: ResNet-50 at batch 32K without loss of accuracy.
    State: one number of the parameter's type per parameter. The rate is inside the momentum, as in the paper; vectors take the plain rate
    and no decay. Each matrix stacked in one weight has its own norms.

    Args:
        trust: how far a matrix moves relative to its norm, at rate 1.
        momentum: heavy ball.
        states: how the momentum is held.
    """

    transfer = "relative"
    elementwise = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1.0,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 1e-4,
        trust: Positive = 0.001,
        states: States = "full",
    ) -> None:
        self.momentum, self.trust = momentum, trust
        super().__init__(params, lr, weight_decay, states)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """v = momentum v + lr trust |w| / (|g| + decay |w|) (g + decay w);  w -= v."""
        rate, decay = group["lr"], group["weight_decay"]
        split = {id(p): found for p, found in matrices(group, members, self.state)}
        for member in members:
            found = split.get(id(member))
            sizes: Tensor | None = None
            if found:
                weight = torch.stack([m.weight.norm() for m in found])
                slope = torch.stack([m.gradient.norm() for m in found]) + decay * weight
                ratios = torch.where((weight > 0) & (slope > 0), self.trust * weight / slope, torch.ones_like(weight))
                rows = torch.tensor([m.weight.shape[0] for m in found], device=member.device)
                sizes = ratios.repeat_interleave(rows).view(-1, *[1] * (member.ndim - 1))
            gradient: Tensor = member.grad  # type: ignore[assignment]
            pull = gradient * rate if sizes is None else torch.add(gradient, member.detach(), alpha=decay).mul_(sizes * rate)

            def move(p: list[Tensor], g: list[Tensor], v: list[Tensor]) -> None:
                torch._foreach_mul_(v, self.momentum)
                torch._foreach_add_(v, g)
                torch._foreach_sub_(p, v)

            sweep(move, [member], [pull], self.column([member], "momentum"))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """One state."""
        return self.column_bytes(torch.Size(shape).numel(), width)
