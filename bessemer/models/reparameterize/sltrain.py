"""Sparse plus low-rank weights from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bessemer.core.products import linear
from bessemer.core.ranges import Count, Part, Positive
from bessemer.core.registry import Auto
from bessemer.models.reparameterized import Match, Matrix, Others, Place, rank_of, replace


def sltrain(
    model: nn.Module, seed: int = 0, *, rank: Count | Auto = "auto", density: Part = 0.03, alpha: Positive = 32.0, match: Match = "blocks.*",
    others: Others = "train",
) -> nn.Module:  # fmt: skip
    """The weight is low-rank plus sparse on a fixed random support, from scratch (Han et al. 2024, "SLTrain").

    W = alpha / rank x B A + S: B [outputs, rank] zeros, A [rank, inputs] and the values of S uniform in +-1 / sqrt(inputs); S has
    density x outputs x inputs entries, their places drawn once. W is formed for each product and again in its backward pass, never kept. For an
    n x m matrix in numbers of w bytes under Adam, weights and state take 3 w (rank (n + m) + density n m) + 8 density n m bytes, the last
    for the places as 64-bit integers (the paper's appendix); gradients another w for each number.

    Claim: pre-training LLaMA-7B takes 73% less memory, with per-layer updates and 8-bit states.

    Args:
        rank: of B A; auto: a quarter of each matrix's smaller side, about what the paper takes.
        density: share of entries in S, delta in the paper.
        alpha: B A is scaled by alpha / rank; the paper takes 32 for small models and 8 for large ones.
        match: which linear layers.
        others: whether all other parameters train or are frozen.
    """
    return replace(model, partial(SLTrainMatrix, rank=rank, density=density, alpha=alpha), seed, match, others)


class SLTrainMatrix(Matrix):
    """scale x left right + values at fixed places."""

    left: Tensor
    right: Tensor
    values: Tensor
    keeps: ClassVar[bool] = False
    places: Tensor
    span: tuple[int, int, int] | None = None

    def __init__(self, weight: Tensor, place: Place, *, rank: int | Auto, density: float, alpha: float) -> None:
        super().__init__(weight, place)
        self.rank = rank_of(weight, rank)
        self.scale = alpha / self.rank
        outputs, inputs = place.axes
        bound = self.inputs**-0.5
        count = max(1, int(density * weight.numel()))
        self.hold("left", weight.new_zeros(self.outputs, self.rank), axes=(outputs, "rank"))
        self.hold("right", place.uniform((self.rank, self.inputs), bound, weight, "right"), axes=("rank", inputs))
        self.hold("values", place.uniform((count,), bound, weight, "values"), role="entries", axes=("none",))
        if weight.is_meta:
            chosen = torch.empty(count, dtype=torch.int64, device=weight.device)
        else:
            chosen = torch.randperm(weight.numel(), generator=place.generator("places"))[:count].sort().values.to(weight.device)
        self.register_buffer("places", chosen)

    def share(self, dim: int, begin: int, end: int, total: Callable[[Tensor], Tensor]) -> None:
        """Of the entries those in the rows or columns from `begin` to `end` are here."""
        super().share(dim, begin, end, total)
        self.span = dim, begin, end

    def entries(self) -> tuple[Tensor, Tensor]:
        """The values of S, zeros for those that lie elsewhere, and places in what is here of the flat matrix."""
        if self.span is None:
            return self.values, self.places
        dim, begin, end = self.span
        rows, columns = self.places // self.inputs, self.places % self.inputs
        at = columns if dim else rows
        here = rows * (end - begin) + (columns - begin) % (end - begin) if dim else (rows - begin) % (end - begin) * self.inputs + columns
        return torch.where((at >= begin) & (at < end), self.values, 0.0), here

    def composed(self) -> Tensor:
        return _compose(self.left, self.right, *self.entries(), self.scale)

    def product(self, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(x, self.left, self.right, *self.entries(), self.scale)
        return found


def _compose(left: Tensor, right: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
    dense = scale * (left @ right)
    return dense.flatten().index_add(0, places, values).view_as(dense)


class _Product(torch.autograd.Function):
    """x W^T that keeps the parts of W for the backward pass, not W itself (the paper's section 3.3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.save_for_backward(x, left, right, values, places)
        ctx.scale, ctx.dtype = scale, dtype
        with torch.autocast(kind, enabled=False):
            return linear(x.to(dtype), _compose(left, right, values, places, scale).to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, left, right, values, places = ctx.saved_tensors
        upper = grads[0].flatten(0, -2)
        weight = _compose(left, right, values, places, ctx.scale).to(ctx.dtype)
        slope = (upper.T @ x.to(ctx.dtype).flatten(0, -2)).to(left.dtype)
        lower = (grads[0] @ weight).to(x.dtype)
        return lower, ctx.scale * (slope @ right.T), ctx.scale * (left.T @ slope), slope.flatten()[places], None, None
