"""What every adapter does: raw values cut into pieces, each piece a vector at its place among the columns of a row."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from bessemer.core.batch import Batch
from bessemer.models.layers.embedding import Embedding
from bessemer.models.layers.linear import Linear

VECTORS = "vectors"
"""A stream of vectors an objective made itself, before the trunk's pass: [rows, n, width], placed by "vectors_index"."""


def place(x: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
    """x [rows, length, width] with vectors[row, index[row, column]] in every column whose index is not negative.

    Args:
        vectors: [rows, n, width].
        index: int64 [rows, length], below n.
    """
    if not vectors.shape[1]:
        return x
    chosen = vectors.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, vectors.shape[-1]))
    return torch.where((index >= 0)[..., None], chosen.to(x.dtype), x)


class Blank(nn.Module):
    """One learned vector, in the place of pieces that are hidden from the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        self.axes, self.roles = {"weight": ("none", "embed")}, {"weight": "embedding"}

    def forward(self) -> Tensor:
        return self.weight[0]


class Adapter(nn.Module):
    """A linear map of each piece's values, plus a learned vector for its place along each axis of a grid (Dosovitskiy et al. 2020, "ViT").

    In a batch the stream NAME holds the pieces' values [rows, n, size]; "NAME_index" int64 [rows, length] says which of them
    stands in a column, -1 in columns of other things; "NAME_place" int64 [rows, n] is each piece's place in the grid, the
    last axis counting fastest; "NAME_blank", if it is there, bool [rows, n], True where the model is to see a blank. Batches
    without these streams pass unchanged, so a modality that is absent costs nothing and is never made up.

    Attributes:
        stream: NAME.
        modality: the name of what it reads, as example stores have it.
        size: values of one piece.
        grid: pieces along each axis.
    """

    stream: ClassVar[str] = "pieces"
    modality: ClassVar[str] = "picture"

    def __init__(self, width: int, size: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.grid = size, grid
        self.project = Linear(size, width, axes=("embed", "none"), bias=True)
        self.places = nn.ModuleList(Embedding(count, width, "position") for count in grid)
        self.blank = Blank(width)

    @property
    def pieces(self) -> int:
        """How many pieces one input has."""
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw input."""
        raise AttributeError(f"{type(self).__name__} says no shape")

    def cut(self, raw: Tensor) -> Tensor:
        """Raw inputs [..., *shape] as pieces [..., pieces, size], scaled to about -1 to 1."""
        raise AttributeError(f"{type(self).__name__} cuts nothing")

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """x [rows, length, width] with this adapter's pieces in their columns."""
        values = batch.streams.get(self.stream)
        if values is None:
            return x
        vectors = self.project(values.to(self.project.weight.dtype)) + self.at(batch.streams[f"{self.stream}_place"])
        blank = batch.streams.get(f"{self.stream}_blank")
        if blank is not None:
            hidden = self.blank() + self.at(batch.streams[f"{self.stream}_place"])
            vectors = torch.where(blank[..., None], hidden.to(vectors.dtype), vectors)
        return place(x, vectors, batch.streams[f"{self.stream}_index"])

    def at(self, where: Tensor) -> Tensor:
        """The sum of the places' vectors along each axis: [..., width] for places [...]."""
        total = None
        for count, table in zip(reversed(self.grid), reversed(list(self.places)), strict=True):
            found = table(where % count)
            total = found if total is None else total + found
            where = where // count
        assert total is not None
        return total
