"""Sophia: momentum over a diagonal Hessian, clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.core import rng, shards
from bessemer.core.ranges import Betas, Count, NonNegative, Positive, Share
from bessemer.optim._blocks import States
from bessemer.optim._probe import Probe, laid_out, weights
from bessemer.optim._rule import Group, Rule, gradients, not_finite, sweep

RADIUS = 1e-2
"""How far from the weights gradients are taken for a Hessian's product, in units of the weights' root mean square."""


class Sophia(Rule):
    """Momentum divided by a running diagonal Hessian and clipped entry by entry (Liu et al. 2023).

    Claim: AdamW's loss in half its steps.
    State: two numbers of the parameter's type per parameter. Until the first estimate every entry moves by the rate, as Lion's do.
    The Hessian's diagonal is estimated every few steps. Gauss-Newton-Bartlett: the square of the gradient on labels drawn from the
    model's own predictions, times their number. Hutchinson: u times the Hessian's product with u, u normal; the product is the central
    difference of gradients, since fused kernels can't be differentiated twice, and it costs two passes where the other costs one and a half.

    Args:
        lr: the furthest an entry moves.
        betas: decay of the momentum and of the Hessian's running mean.
        gamma: how much of the Hessian counts: the larger, the fewer entries are clipped (0.01 to 0.05, aim at 10 to 50% unclipped).
        eps: the least divisor.
        weight_decay: decoupled.
        estimate: of the Hessian's diagonal.
        every: steps between two estimates.
        share: of a step's micro-batches that an estimate reads, at least one.
        seed: of what estimates draw.
        states: how the momentum and the Hessian are held.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 6e-4,
        betas: Betas = [0.965, 0.99],
        gamma: NonNegative = 0.05,
        eps: Positive = 1e-12,
        weight_decay: NonNegative = 0.2,
        estimate: Literal["gauss_newton_bartlett", "hutchinson"] = "gauss_newton_bartlett",
        every: Count = 10,
        share: Share = 0.5,
        seed: int = 0,
        states: States = "full",
    ) -> None:
        self.estimate, self.every, self.share, self.seed = estimate, every, share, seed
        self.found: dict[Tensor, Tensor] = {}
        self.betas, self.gamma, self.eps = betas, gamma, eps
        super().__init__(params, lr, weight_decay, states)

    def prepare(self, probe: Probe) -> None:
        """Makes an estimate when one is due, for the update to take in."""
        self.found = {}
        if probe.progress.step % self.every == 0:
            estimate = self.hutchinson if self.estimate == "hutchinson" else self.gauss_newton_bartlett
            mine = [p for group in self.param_groups for p in group["params"]]
            self.found = dict(zip(mine, estimate(probe, mine), strict=True))

    def gauss_newton_bartlett(self, probe: Probe, parameters: list[Tensor]) -> list[Tensor]:
        """B g^2, g the mean gradient over B drawn labels (Liu et al. 2023, algorithm 2)."""
        batches, labels = probe.redrawn(probe.some(self.share), self.seed)
        return [labels * gradient.square() for gradient in probe.gradients(parameters, batches)]

    def hutchinson(self, probe: Probe, parameters: list[Tensor]) -> list[Tensor]:
        """u (H u), u normal (Liu et al. 2023, algorithm 1)."""
        batches, layout = probe.some(self.share), probe.engine.layout
        names: dict[Tensor, str] = {p: name for name, p in probe.model.named_parameters()}
        vectors = []
        for p in parameters:
            drawn = torch.randn(p.shape, generator=rng.generator(self.seed, "hutchinson", probe.progress.step, names[p]))
            vectors.append(laid_out(drawn.to(p.device, p.dtype), p, layout.parts.get(names[p], ())))
        size = math.sqrt(layout.square(parameters, [p.detach() for p in parameters]) / layout.square(parameters, vectors))
        radius = RADIUS * size or RADIUS
        with probe.exact():
            with weights({p: p.detach() + radius * v for p, v in zip(parameters, vectors, strict=True)}):
                ahead = probe.gradients(parameters, batches)
            with weights({p: p.detach() - radius * v for p, v in zip(parameters, vectors, strict=True)}):
                behind = probe.gradients(parameters, batches)
        return [v * (a - b) / (2.0 * radius) for v, a, b in zip(vectors, ahead, behind, strict=True)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes in the estimate that was made for this step, if one was, and updates."""
        self.curvature(self.found)
        self.found = {}
        super().step()

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
            estimates: by parameter.
        """
        mine = [p for group in self.param_groups for p in group["params"] if p in estimates]
        bad = not_finite([estimates[p] for p in mine]) if mine else []
        mine = [p for p, wrong in zip(mine, bad, strict=True) if not wrong]

        def move(h: list[Tensor], new: list[Tensor]) -> None:
            torch._foreach_lerp_(h, new, 1.0 - self.betas[1])

        def take(p: Tensor, estimate: Tensor) -> None:
            column = self.column([p], "hessian")
            if isinstance(column[0], Tensor):
                sweep(move, column, [estimate])
            else:
                sweep(lambda _, new, h: move(h, new), [torch.empty_like(estimate)], [estimate], column)

        cut = [[p for p in mine if p in owners] for owners in self.gathering()]
        lying = {p for lie in cut for p in lie}
        for p in mine:
            if p not in lying:
                take(p, estimates[p])
        for owners, lie in zip(self.gathering(), cut, strict=True):
            for found in owners.gather(lie, [[shards.local(estimates[p]) for p in lie]]) if lie else ():
                with self.standing_in({lie[n]: estimate for n, (estimate,) in found.items()}) as whole:
                    for estimate in whole:
                        take(estimate, estimate)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Momentum and Hessian."""
        return 2 * self.column_bytes(torch.Size(shape).numel(), width)
