"""Fira: GaLore, and what its projection drops, scaled."""

from __future__ import annotations

from typing import Any

import torch

from bessemer.optim._blocks import States
from bessemer.optim._low_rank import norm_growth
from bessemer.optim._rule import Group, Matrix
from bessemer.optim.galore import Galore


class Fira(Galore):
    """GaLore plus the rest of the gradient, each channel scaled as Adam scales its projection, its norm limited in growth (Chen et al. 2024).

    Claim: full-rank quality, or better, at GaLore's memory.
    State of an m x n matrix, m <= n: r (m + 2 n) numbers of the parameter's type and one norm.

    Args:
        rank: of the projection, on the shorter side.
        refresh: steps between projections.
        scale: the projected update's factor; as in the authors' code the rest is the gradient less `scale` times its projection.
        limit: by how much the norm of the scaled rest may grow from step to step.
        weight_decay: decoupled.
        states: how the two moments are held.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-2,
        betas: list[float] = [0.9, 0.999],
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int = 128,
        refresh: int = 200,
        scale: float = 0.25,
        limit: float = 1.01,
        states: States = "full",
    ) -> None:
        self.limit = limit
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rank=rank, refresh=refresh, scale=scale, states=states)

    def _move(self, group: Group, step: int, matrix: Matrix) -> None:
        """W -= size (scale (N - f R) P^T + f G), with f the channels' factors over the limiter: one product, the rest never formed.

        Its norm follows from the gradient's and the projection's channel norms, because the projection is orthonormal.
        """
        low, basis = self.project(matrix, step)
        first, second = (matrix.moment(key, low, self.states, key == "exp_avg") for key in ("exp_avg", "exp_avg_sq"))
        update = self.direction(low, first, second)
        across = 1 if matrix.weight.shape[0] >= matrix.weight.shape[1] else 0
        inside = torch.linalg.vector_norm(low, dim=across, keepdim=True)
        factors = torch.linalg.vector_norm(update, dim=across, keepdim=True) / (inside + 1e-8)
        whole = torch.linalg.vector_norm(matrix.gradient, dim=across, keepdim=True)
        rest = (whole.square() - self.scale * (2.0 - self.scale) * inside.square()).clamp(min=0.0)
        factors /= norm_growth(matrix, (factors.square() * rest).sum().sqrt(), self.limit)
        update.addcmul_(low, factors, value=-1.0)
        self.back(group, step, matrix, update, basis)
        shrink = 1.0 - group["lr"] * group["weight_decay"]
        matrix.weight.addcmul_(matrix.gradient, factors, value=-shrink * group["lr"] * self.correction(step))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Projection, two moments and a norm."""
        return self.low_rank_bytes(shape, width, parts, held=width, per_matrix=width)
