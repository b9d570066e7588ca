"""Fira: GaLore, and what its projection drops, scaled."""

from __future__ import annotations

from typing import Any

from bessemer.core.ranges import Betas, Count, Growth, NonNegative, Positive
from bessemer.core.registry import Auto
from bessemer.optim._blocks import States
from bessemer.optim._low_rank import channel_norms, norm_growth, subtract
from bessemer.optim._matrices import Matrix
from bessemer.optim._rule import Group, Products
from bessemer.optim.galore import Galore


class Fira(Galore):
    """GaLore plus the rest of the gradient, each channel scaled as Adam scales its projection, its norm limited in growth (Chen et al. 2024).

    Claim: full-rank quality, or better, at GaLore's memory.
    State of an m x n matrix, m <= n: r (m + 2 n) numbers of the parameter's type and one norm.

    Args:
        rank: of the projection, on the shorter side; "auto": a quarter of it.
        refresh: steps between projections.
        scale: the projected update's factor; as in the authors' code the rest is the gradient less `scale` times its projection.
        limit: by how much the norm of the scaled rest may grow from step to step.
        weight_decay: decoupled.
        states: how the two moments are held.
        products: what matrices are multiplied in.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1e-2,
        betas: Betas = [0.9, 0.999],
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        rank: Count | Auto = "auto",
        refresh: Count = 200,
        scale: Positive = 0.25,
        limit: Growth = 1.01,
        states: States = "full",
        products: Products = "float32",
    ) -> None:
        self.limit = limit
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rank=rank, refresh=refresh, scale=scale, states=states, products=products
        )

    @property
    def chained(self) -> bool:
        """Never: what projections leave needs the norms of whole gradients."""
        return False

    def move(self, group: Group, step: int, batch: list[Matrix]) -> None:
        """W -= size (scale (N - f R) P^T + f G), with f the channels' factors over the limiter: one product, the rest never formed.

        Its norm follows from the gradient's and the projection's channel norms, because the projection is orthonormal.
        """
        bases = [self.basis(matrix, step) for matrix in batch]
        lows = self.project(batch, bases)
        updates = self.adam(batch, lows)
        factors, norms = [], []
        channels = channel_norms(updates), channel_norms(lows), channel_norms([matrix.gradient for matrix in batch])
        for after, inside, whole in zip(*channels, strict=True):
            factor = after / (inside + 1e-8)
            rest = (whole.square() - self.scale * (2.0 - self.scale) * inside.square()).clamp_(min=0.0)
            factors.append(factor)
            norms.append((factor.square() * rest).sum().sqrt())
        for factor, divisor, update, low in zip(factors, norm_growth(batch, norms, self.limit), updates, lows, strict=True):
            factor /= divisor
            update.addcmul_(low, factor, value=-1.0)
        self.back(group, step, batch, updates, bases)
        size = (1.0 - group["lr"] * group["weight_decay"]) * group["lr"] * self.correction(step)
        subtract(batch, factors, size, 1.0)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Projection, two moments and a norm."""
        return self.low_rank_bytes(shape, width, parts, held=width, per_matrix=width)
