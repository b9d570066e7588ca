"""Sophia: momentum over a diagonal Hessian, clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bessemer.optim._blocks import States
from bessemer.optim._rule import Group, Rule, gradients, sweep


class Sophia(Rule):
    """Momentum divided by a running diagonal Hessian and clipped entry by entry (Liu et al. 2023).

    Claim: AdamW's loss in half its steps. Every few steps someone gives it an estimate of the Hessian's diagonal with `curvature`.
    State: two numbers of the parameter's type per parameter. Until the first estimate every entry moves by the rate, as Lion's do.

    Args:
        lr: the furthest an entry moves.
        betas: decay of the momentum and of the Hessian's running mean.
        gamma: how much of the Hessian counts: the larger, the fewer entries are clipped (0.01 to 0.05, aim at 10 to 50% unclipped).
        eps: the least divisor.
        weight_decay: decoupled.
        states: how the momentum and the Hessian are held.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 6e-4,
        betas: list[float] = [0.965, 0.99],
        gamma: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.2,
        states: States = "full",
    ) -> None:
        self.betas, self.gamma, self.eps = betas, gamma, eps
        super().__init__(params, lr, weight_decay, states)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """p -= lr clip(m / max(gamma h, eps), 1)."""
        rate, shrink = group["lr"], 1.0 - group["lr"] * group["weight_decay"]

        def move(p: list[Tensor], g: list[Tensor], m: list[Tensor], h: list[Tensor]) -> None:
            torch._foreach_lerp_(m, g, 1.0 - self.betas[0])
            divisor = torch._foreach_mul(h, self.gamma)
            torch._foreach_clamp_min_(divisor, self.eps)
            update = torch._foreach_div(m, divisor)
            torch._foreach_clamp_min_(update, -1.0)
            torch._foreach_clamp_max_(update, 1.0)
            torch._foreach_mul_(p, shrink)
            torch._foreach_add_(p, update, alpha=-rate)

        sweep(move, members, gradients(members), self.column(members, "exp_avg"), self.column(members, "hessian"))

    @torch.no_grad()
    def curvature(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Takes estimates of the Hessian's diagonal into its running mean; those that are not finite are left out.

        Args:
            estimates: by parameter. Hutchinson: u times the gradient of (gradient . u), u normal. Gauss-Newton-Bartlett: the square of
                the gradient of the loss on labels drawn from the model's own predictions, times the number of labels.
        """
        mine = [p for group in self.param_groups for p in group["params"] if p in estimates]
        mine = [p for p in mine if bool(estimates[p].isfinite().all())]

        def move(h: list[Tensor], new: list[Tensor]) -> None:
            torch._foreach_lerp_(h, new, 1.0 - self.betas[1])

        for p in mine:
            column = self.column([p], "hessian")
            if isinstance(column[0], Tensor):
                sweep(move, column, [estimates[p]])
            else:
                sweep(lambda _, new, h: move(h, new), [torch.empty_like(p)], [estimates[p]], column)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Momentum and Hessian."""
        return 2 * self.column_bytes(torch.Size(shape).numel(), width)
