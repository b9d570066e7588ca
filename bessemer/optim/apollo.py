"""APOLLO: plain gradients, scaled by what Adam would do to a random projection of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.core.products import Chain, run
from bessemer.core.ranges import Betas, Count, Growth, NonNegative, Positive
from bessemer.core.registry import Auto
from bessemer.optim import _fused
from bessemer.optim._blocks import States
from bessemer.optim._low_rank import LowRank, channel_norms, norm_growth, subtract
from bessemer.optim._matrices import Matrix, matrices
from bessemer.optim._rule import Group, Products, finite, not_finite


class Apollo(LowRank):
    """The gradient, each channel scaled as Adam scales a random projection of it, with Fira's limiter (Zhu et al. 2024).

    Claim: AdamW's perplexity or better at a fraction of its memory, without singular values.
    State of an m x n matrix, m <= n: 2 r n numbers of the parameter's type and one norm. The projections are remade from the seed
    and the step; one of each size is kept at hand, r m numbers, for all matrices with that shorter side.

    Args:
        rank: of the projection, on the shorter side; "auto": a quarter of it.
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
        lr: NonNegative = 1e-2,
        betas: Betas = [0.9, 0.999],
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        rank: Count | Auto = "auto",
        refresh: Count = 200,
        scale: Positive = 1.0,
        by: Literal["channel", "tensor"] = "channel",
        limit: Growth = 1.01,
        states: States = "full",
        seed: int = 0,
        products: Products = "float32",
    ) -> None:
        self.scale, self.by, self.limit, self.seed = scale, by, limit, seed
        self.at_hand: dict[tuple[int, torch.dtype, torch.device], tuple[int, Tensor]] = {}
        self.found: dict[Tensor, list[Matrix]] = {}  # this step's matrices and their gradients' norms, by identity
        self.norms: dict[int, Tensor] = {}
        super().__init__(params, lr, weight_decay, betas, eps, rank, refresh, states, products)

    def projection(self, side: int, step: int, like: Tensor) -> Tensor:
        """[side, rank], normal with variance 1 / rank: a function of seed, side and how often it was renewed by this step."""
        turn = (step - 1) // self.refresh
        key = side, like.dtype, like.device
        kept = self.at_hand.get(key)
        if kept is None or kept[0] != turn:
            rank = self.rank_of(side, side)
            drawn = torch.randn(side, rank, generator=rng.generator(self.seed, "apollo", side, turn)) / math.sqrt(rank)
            kept = self.at_hand[key] = (turn, drawn.to(like))
        return kept[1]

    def advance(self, group: Group, members: list[Tensor]) -> None:
        """As every rule; gradients that were looked at don't outlive the step."""
        super().advance(group, members)
        self.found, self.norms = {}, {}

    def sound(self, group: Group, members: list[Tensor]) -> list[Tensor]:
        """Takes the gradients' norms, which the rule needs anyway, and judges by them."""
        vectors = set(finite([p for p in members if p.ndim < 2]))
        found = dict(matrices(group, [p for p in members if p.ndim >= 2], self.state))
        flat = [matrix for members in found.values() for matrix in members]
        norms = self._norms(flat)
        self.norms = dict(zip(map(id, flat), norms, strict=True))
        self.found = found
        wrong = not_finite(norms) if norms else []
        bad = {id(matrix) for matrix, infinite in zip(flat, wrong, strict=True) if infinite}
        return [p for p in members if (p in vectors if p.ndim < 2 else not any(id(m) in bad for m in found[p]))]

    def matrices(self, group: Group, members: list[Tensor]) -> Iterable[list[Matrix]]:
        """Those found while judging."""
        return (self.found[p] for p in members if p.ndim >= 2)

    def _norms(self, batch: list[Matrix]) -> list[Tensor]:
        """Of each matrix, or of each of its channels."""
        found = [matrix.gradient for matrix in batch]
        if self.by == "channel":
            return channel_norms(found)
        return list(torch._foreach_norm(found)) if found else []

    @property
    def chained(self) -> bool:
        """Where each channel has its factor, unless the moments are in blocks."""
        return self.by == "channel" and self.states == "full"

    def move(self, group: Group, step: int, batch: list[Matrix]) -> None:
        """Scales each matrix's gradient and subtracts it."""
        factors = self._of_channels(batch, step) if self.chained else self._of_batch(batch, step)
        sizes = [self.norms[id(matrix)] for matrix in batch]
        if self.by == "tensor":
            norms = list((torch.stack(factors) * torch.stack(sizes)).unbind())
        else:
            norms = list(torch._foreach_norm(torch._foreach_mul(factors, sizes)))
        limited = torch._foreach_div(factors, norm_growth(batch, norms, self.limit))
        size = math.sqrt(self.scale) * group["lr"] * self.correction(step)
        subtract(batch, limited, size, 1.0 - group["lr"] * group["weight_decay"])

    def _of_channels(self, batch: list[Matrix], step: int) -> list[Tensor]:
        """Each channel's factor, span by span."""
        chains: list[Chain] = []
        factors = [norms.new_empty(norms.shape) for norms in (self.norms[id(matrix)] for matrix in batch)]
        for matrix, factor in zip(batch, factors, strict=True):
            basis = self.projection(min(matrix.gradient.shape), step, matrix.gradient)
            for span in matrix.spans():
                low, project, first, second = self.lowered(matrix, basis, span)
                scale = _fused.scaling(low, first, second, matrix.piece(factor, span), self.betas, self.eps, matrix.tall)
                chains.append((project, scale))
        run(chains)
        return factors

    def _of_batch(self, batch: list[Matrix], step: int) -> list[Tensor]:
        """Each channel's factor, or each matrix's."""
        lows = self.project(batch, [self.projection(min(m.gradient.shape), step, m.gradient) for m in batch])
        if self.by == "tensor":
            inside = torch.stack(torch._foreach_norm(lows))  # before the directions, which may take their place
            return list((torch.stack(torch._foreach_norm(self.adam(batch, lows))) / (inside + 1e-8)).unbind())
        before = channel_norms(lows)
        return list(torch._foreach_div(channel_norms(self.adam(batch, lows)), torch._foreach_add(before, 1e-8)))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two moments and a norm."""
        return self.low_rank_bytes(shape, width, parts, held=0, per_matrix=width)
