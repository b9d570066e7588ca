"""APOLLO: plain gradients, scaled by what Adam would do to a random projection of them."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.optim._blocks import States
from bessemer.optim._low_rank import LowRank, norm_growth
from bessemer.optim._rule import Group, Matrix, matrices


class Apollo(LowRank):
    """The gradient, each channel scaled as Adam scales a random projection of it, with Fira's limiter (Zhu et al. 2024).

    Claim: AdamW's perplexity or better at a fraction of its memory, without singular values.
    State of an m x n matrix, m <= n: 2 r n numbers of the parameter's type and one norm. The projections are remade from the seed
    and the step; one of each size is kept at hand, r m numbers, for all matrices with that shorter side.

    Args:
        rank: of the projection, on the shorter side.
        refresh: steps between projections.
        scale: of the update, its square root is applied; 1 for channels, 128 for tensors of rank 1 in the paper.
        by: what shares a factor, a channel along the longer side or the whole matrix.
        limit: by how much the norm of the update may grow from step to step.
        weight_decay: decoupled.
        states: how the two moments are held.
        seed: of the projections.
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
        scale: float = 1.0,
        by: Literal["channel", "tensor"] = "channel",
        limit: float = 1.01,
        states: States = "full",
        seed: int = 0,
    ) -> None:
        self.scale, self.by, self.limit, self.seed = scale, by, limit, seed
        self.at_hand: dict[int, tuple[int, Tensor]] = {}
        super().__init__(params, lr, weight_decay, betas, eps, rank, refresh, states)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """Scales each matrix's gradient and subtracts it."""
        for step, stepping in self.counted(members):
            self.plain(group, step, [p for p in stepping if p.ndim < 2])
            for _, found in matrices(group, stepping, self.state):
                for matrix in found:
                    if self.projects(*matrix.weight.shape):
                        self._move(group, step, matrix)
                    else:
                        self.plain_matrix(group, step, matrix)

    def projection(self, side: int, step: int, like: Tensor) -> Tensor:
        """[side, rank], normal with variance 1 / rank: a function of seed, side and how often it was renewed by this step."""
        turn = (step - 1) // self.refresh
        kept = self.at_hand.get(side)
        if kept is None or kept[0] != turn:
            drawn = torch.randn(side, self.rank, generator=rng.generator(self.seed, "apollo", side, turn)) / math.sqrt(self.rank)
            kept = self.at_hand[side] = (turn, drawn.to(like))
        return kept[1]

    def _move(self, group: Group, step: int, matrix: Matrix) -> None:
        gradient = matrix.gradient
        tall = gradient.shape[0] >= gradient.shape[1]
        basis = self.projection(min(gradient.shape), step, gradient)
        low = gradient @ basis if tall else basis.mT @ gradient
        first, second = (matrix.moment(key, low, self.states, key == "exp_avg") for key in ("exp_avg", "exp_avg_sq"))
        update = self.direction(low, first, second)
        across: Any = (0, 1) if self.by == "tensor" else 1 if tall else 0
        factors = torch.linalg.vector_norm(update, dim=across, keepdim=True) / (torch.linalg.vector_norm(low, dim=across, keepdim=True) + 1e-8)
        norm = (factors * torch.linalg.vector_norm(gradient, dim=across, keepdim=True)).norm()
        factors /= norm_growth(matrix, norm, self.limit)
        shrink = 1.0 - group["lr"] * group["weight_decay"]
        matrix.weight.addcmul_(gradient, factors, value=-math.sqrt(self.scale) * group["lr"] * self.correction(step))
        if shrink != 1.0:
            matrix.weight.mul_(shrink)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two moments and a norm."""
        return self.low_rank_bytes(shape, width, parts, held=0, per_matrix=width)
