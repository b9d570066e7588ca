"""Rows: which pieces of which documents stand together in one row of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """What a packing method makes. Row r consists of pieces offsets[r] to offsets[r + 1], one after the other.

    Attributes:
        offsets: int64 [rows + 1], ascending.
        document: int64 [pieces], which document each piece is of.
        start: int64 [pieces], the piece's first token, counted within its document.
        size: int64 [pieces], its tokens.
        length: the tokens of a row; what the pieces leave is padding.
        masked: whether attention stays inside a piece and positions begin again at each.
        levels, turns: int64 [rows], where the order of rows matters: the level of each row, and the level of each place of
            an epoch. None: any row may come at any place.
    """

    offsets: Array
    document: Array
    start: Array
    size: Array
    length: int
    masked: bool = True
    levels: Array | None = None
    turns: Array | None = None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return int(self.size.sum())

    @property
    def padding(self) -> float:
        """The share of all places that hold no token."""
        places = self.count * self.length
        return 1.0 - self.tokens / places if places else 0.0

    @classmethod
    def of(cls, row: Array, document: Array, start: Array, size: Array, length: int, *, masked: bool = True) -> Rows:
        """Rows from pieces in any order, each with the row it belongs to; pieces of a row keep their order."""
        order = np.argsort(row, kind="stable")
        counts = np.bincount(row) if len(row) else np.zeros(0, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, document[order], start[order], size[order], length, masked)

    @classmethod
    def join(cls, parts: list[Rows]) -> Rows:
        """The rows of several packings of one length, one packing after the other; levels and turns are left out."""
        ends = np.cumsum([0] + [int(part.offsets[-1]) for part in parts])
        offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
        first = parts[0]
        return cls(
            np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
            np.concatenate([part.document for part in parts]),
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.size for part in parts]),
            first.length,
            first.masked,
        )


def spread(begin: Array, size: Array) -> Array:
    """begin[0], begin[0] + 1, ... size[0] of them, then those of begin[1], and so on: int64 [sum(size)]."""
    ends = np.cumsum(size)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - size), size)
