"""Low-rank weights completed by whole channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bessemer.core.products import linear
from bessemer.core.ranges import Count, Part, Share
from bessemer.core.registry import Auto
from bessemer.models.reparameterized import Match, Matrix, Others, Place, rank_of, replace, svd


def lost(
    model: nn.Module, seed: int = 0, *, rank: Count | Auto = "auto", density: Part = 0.03, gamma: Share = 0.7, match: Match = "blocks.*",
    others: Others = "train",
) -> nn.Module:  # fmt: skip
    """Low-rank factors from the largest singular values, and whole input channels for what the others hold (Li et al. 2025, "LOST").

    y = gamma x B A x + (1 - gamma) x W_s x[I]. With W = U S V^T at the start: B = U_r S_r^1/2, A = S_r^1/2 V_r^T; I are the inputs whose
    columns of W - U_r S_r V_r^T have the greatest norms, and W_s [outputs, |I|] begins as those columns of W. All three train.
    Numbers of an n x m matrix: rank (n + m) + n x round(density m), and |I| places. The paper may also put a nonlinearity between
    the factors; it is left out, since the weight could then be neither merged nor exported.

    Claim: LLaMA-1B reaches a perplexity of 15.02 where full-rank training reaches 15.56.

    Args:
        rank: of B A; auto: a quarter of each matrix's smaller side.
        density: share of input channels that are held whole; at least one is.
        gamma: weight of the low-rank part. The default is ours: the paper's could not be looked up.
        match: which linear layers.
        others: whether all other parameters train or are frozen.
    """
    return replace(model, partial(LOSTMatrix, rank=rank, density=density, gamma=gamma), seed, match, others)


class LOSTMatrix(Matrix):
    """gamma x left right + (1 - gamma) x columns at the chosen channels."""

    left: Tensor
    right: Tensor
    columns: Tensor
    keeps: ClassVar[bool] = False
    channels: Tensor
    span: tuple[int, int] | None = None

    def __init__(self, weight: Tensor, place: Place, *, rank: int | Auto, density: float, gamma: float) -> None:
        super().__init__(weight, place)
        self.rank, self.gamma = rank_of(weight, rank), gamma
        outputs, inputs = place.axes
        left, values, right = svd(weight)
        roots = values[: self.rank].sqrt()
        self.hold("left", (left[:, : self.rank] * roots).to(weight.dtype), axes=(outputs, "rank"))
        self.hold("right", (roots[:, None] * right[: self.rank]).to(weight.dtype), axes=("rank", inputs))
        rest = (left[:, self.rank :] * values[self.rank :]) @ right[self.rank :]
        count = max(1, round(density * self.inputs))
        chosen = torch.linalg.vector_norm(rest, dim=0).topk(count).indices.sort().values
        self.register_buffer("channels", chosen)
        self.hold("columns", weight[:, chosen] if not weight.is_meta else weight[:, :count], axes=(outputs, "none"))

    def composed(self) -> Tensor:
        at, columns = self.here()
        return (self.gamma * (self.left @ self.right)).index_add(1, at, (1 - self.gamma) * columns)

    def product(self, x: Tensor) -> Tensor:
        at, columns = self.here()
        return self.gamma * linear(linear(x, self.right), self.left) + (1 - self.gamma) * linear(x[..., at], columns)

    def share(self, dim: int, begin: int, end: int, total: Callable[[Tensor], Tensor]) -> None:
        """Of the channels those among the inputs from `begin` to `end` are here."""
        super().share(dim, begin, end, total)
        self.span = (begin, end) if dim else None

    def here(self) -> tuple[Tensor, Tensor]:
        """The channels by their places among the inputs here, and their columns, zeros where the channel lies elsewhere."""
        if self.span is None:
            return self.channels, self.columns
        begin, end = self.span
        inside = (self.channels >= begin) & (self.channels < end)
        return (self.channels - begin) % (end - begin), torch.where(inside, self.columns, 0.0)

    def flops(self) -> float:
        """Both parts, at 6 for each number."""
        return 6.0 * (self.rank * (self.outputs + self.inputs) + self.columns.numel())
