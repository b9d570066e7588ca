"""APOLLO: plain gradients, scaled by what Adam would do to a random projection of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.optim._blocks import States
from bessemer.optim._low_rank import LowRank, channel_norms, norm_growth
from bessemer.optim._rule import Group, Matrix, Products, finite, matrices


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
        products: what matrices are multiplied in.
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
        products: Products = "float32",
    ) -> None:
        self.scale, self.by, self.limit, self.seed = scale, by, limit, seed
        self.at_hand: dict[int, tuple[int, Tensor]] = {}
        self.found: dict[Tensor, list[Matrix]] = {}  # this step's matrices and their gradients' norms, by identity
        self.norms: dict[int, Tensor] = {}
        super().__init__(params, lr, weight_decay, betas, eps, rank, refresh, states, products)

    def projection(self, side: int, step: int, like: Tensor) -> Tensor:
        """[side, rank], normal with variance 1 / rank: a function of seed, side and how often it was renewed by this step."""
        turn = (step - 1) // self.refresh
        kept = self.at_hand.get(side)
        if kept is None or kept[0] != turn:
            drawn = torch.randn(side, self.rank, generator=rng.generator(self.seed, "apollo", side, turn)) / math.sqrt(self.rank)
            kept = self.at_hand[side] = (turn, drawn.to(like))
        return kept[1]

    def sound(self, group: Group, members: list[Tensor]) -> list[Tensor]:
        """Takes the gradients' norms, which the rule needs anyway, and judges by them."""
        vectors = set(finite([p for p in members if p.ndim < 2]))
        found = dict(matrices(group, [p for p in members if p.ndim >= 2], self.state))
        flat = [matrix for members in found.values() for matrix in members]
        self.norms = dict(zip(map(id, flat), self._norms(flat), strict=True))
        self.found = found
        totals = [norm.sum() for norm in self.norms.values()]
        good = torch.stack(totals).isfinite().tolist() if totals else []
        bad = {id(matrix) for matrix, fine in zip(flat, good, strict=True) if not fine}
        return [p for p in members if (p in vectors if p.ndim < 2 else not any(id(m) in bad for m in found[p]))]

    def matrices(self, group: Group, members: list[Tensor]) -> Iterable[list[Matrix]]:
        """Those found while judging."""
        return (self.found[p] for p in members if p.ndim >= 2)

    def _norms(self, batch: list[Matrix]) -> list[Tensor]:
        """Of each matrix, or of each of its channels."""
        if self.by == "tensor":
            return list(torch._foreach_norm([matrix.gradient for matrix in batch])) if batch else []
        return [channel_norms(m.gradient, 1 if m.weight.shape[0] >= m.weight.shape[1] else 0) for m in batch]

    def move(self, group: Group, step: int, batch: list[Matrix]) -> None:
        """Scales each matrix's gradient and subtracts it."""
        lows = [self._project(matrix.gradient, step) for matrix in batch]
        updates = self.adam(batch, lows)
        if self.by == "tensor":
            inside, after = torch.stack(torch._foreach_norm(lows)), torch.stack(torch._foreach_norm(updates))
            factors = list((after / (inside + 1e-8)).unbind())
            norms = [factor * self.norms[id(matrix)] for matrix, factor in zip(batch, factors, strict=True)]
        else:
            across = [1 if m.weight.shape[0] >= m.weight.shape[1] else 0 for m in batch]
            factors = [channel_norms(u, a) / (channel_norms(low, a) + 1e-8) for u, low, a in zip(updates, lows, across, strict=True)]
            norms = [(f * self.norms[id(m)]).norm() for m, f in zip(batch, factors, strict=True)]
        size, shrink = math.sqrt(self.scale) * group["lr"] * self.correction(step), 1.0 - group["lr"] * group["weight_decay"]
        for matrix, factor, divisor in zip(batch, factors, norm_growth(batch, norms, self.limit), strict=True):
            matrix.weight.addcmul_(matrix.gradient, factor / divisor, value=-size)
        if shrink != 1.0:
            torch._foreach_mul_([matrix.weight for matrix in batch], shrink)

    def _project(self, gradient: Tensor, step: int) -> Tensor:
        basis = self.projection(min(gradient.shape), step, gradient)
        return gradient @ basis if gradient.shape[0] >= gradient.shape[1] else basis.mT @ gradient

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two moments and a norm."""
        return self.low_rank_bytes(shape, width, parts, held=0, per_matrix=width)
