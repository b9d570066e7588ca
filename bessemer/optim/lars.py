"""LARS: momentum, each matrix's rate in proportion to its norm over its gradient's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.core.ranges import Decay, NonNegative, Positive
from bessemer.optim._blocks import States
from bessemer.optim._matrices import laid_flat, parts_of
from bessemer.optim._rule import Group, Rule, sweep


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
        rate, decay, parts = group["lr"], group["weight_decay"], parts_of(group)
        matrices = {p: shards.matrices(p.detach(), parts[id(p)]) for p in members if p.ndim >= 2}
        sizes, ratios = [len(found) for found in matrices.values()], {}
        if matrices:
            of = [p for p, found in matrices.items() for _ in found]
            weight = shards.norms(of, [m for found in matrices.values() for m in found])
            slope = shards.norms(of, [g for p in matrices for g in shards.matrices(laid_flat(p), parts[id(p)])]) + decay * weight
            trusted = torch.where((weight > 0) & (slope > 0), self.trust * weight / slope, torch.ones_like(weight))
            ratios = dict(zip(matrices, (rate * trusted).split(sizes), strict=True))

        def move(p: list[Tensor], g: list[Tensor], v: list[Tensor]) -> None:
            torch._foreach_mul_(v, self.momentum)
            torch._foreach_add_(v, g)
            torch._foreach_sub_(p, v)

        for member in members:
            gradient = laid_flat(member)
            pull = torch.add(gradient, member.detach(), alpha=decay) if member in ratios else gradient * rate
            if member in ratios:
                torch._foreach_mul_(shards.matrices(pull, parts[id(member)]), list(ratios[member].unbind()))
            sweep(move, [member], [pull], self.column([member], "momentum"))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """One state."""
        return self.column_bytes(torch.Size(shape).numel(), width)
