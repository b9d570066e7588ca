"""Which rank holds which columns of a batch, and which columns each query looks at.

Every document is cut by itself: into two chunks for each rank, of which rank r gets number r from the front and number r from the
back. A rank so has an early and a late part of every document, and all have the same work in attention whatever the documents'
lengths; leftovers go round the ranks, so that all have the same number of columns too. (Zig-zag cuts of whole rows, as in
Llama 3's context parallelism, leave ranks idle when documents end between them.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bessemer.core.errors import RecipeError

QUERIES = 256
"""Queries taken together: the columns that only some of them look at are multiplied in vain for the others."""


@dataclass(frozen=True)
class Span:
    """What the queries of one rank, or of several together, look at among the keys of one rank or several.

    Attributes:
        first, last: int64 [rows, queries]: a query looks at keys first to last of its row, `last` not included.
        blocks: (first query, end, first key, end): together they cover all that is looked at.
    """

    first: Tensor
    last: Tensor
    blocks: list[tuple[int, int, int, int]]

    @staticmethod
    def of(first: Tensor, last: Tensor) -> Span:
        """Finds the blocks, and leaves out keys that no row's query of a block looks at."""
        queries = first.shape[1]
        blocks = []
        empty = last <= first
        low = torch.where(empty, torch.iinfo(torch.int64).max, first).amin(0)
        high = torch.where(empty, 0, last).amax(0)
        for start in range(0, queries, QUERIES):
            stop = min(start + QUERIES, queries)
            begin, end = int(low[start:stop].min()), int(high[start:stop].max())
            if end > begin:
                blocks.append((start, stop, begin, end))
        return Span(first, last, blocks)

    def to(self, device: torch.device) -> Span:
        return Span(self.first.to(device), self.last.to(device), self.blocks)

    def work(self) -> int:
        """Pairs of queries and keys that are multiplied, in a row."""
        return sum((stop - start) * (end - begin) for start, stop, begin, end in self.blocks)

    def pairs(self) -> int:
        """Pairs that count, over all rows."""
        return int((self.last - self.first).clamp(min=0).sum())


class Plan:
    """The columns of a batch dealt out to ranks.

    All ranks hold equally many places; where the columns don't divide, the last place of some ranks is empty.

    Args:
        segments: int64 [rows, length], 0 at padding; None: each row is one document.
        open: bool [rows, length], the columns that all of their document may look at: its first ones, if any; None: none.
        length: columns of a row.
        rows: how many there are.
        ranks: of the context axis.

    Attributes:
        places: columns that each rank holds, the empty one counted.
        columns: int64 [rows, ranks, places]: the column in each place, in order of the text; `length` where it is empty.
        inverse: int64 [rows, length]: where a column lies, as rank x places + place.

    Raises:
        RecipeError: open columns stand elsewhere in a document.
    """

    def __init__(self, segments: Tensor | None, rows: int, length: int, ranks: int, open: Tensor | None = None) -> None:
        self.rows, self.length, self.ranks = rows, length, ranks
        self.places = -(-length // ranks)
        self.segments = torch.ones(rows, length, dtype=torch.int64) if segments is None else segments.cpu()
        self.reach = None if open is None else self._reach(open.cpu())
        owner = self._owners()
        held = torch.stack([owner == rank for rank in range(ranks)], 1)
        counts = held.sum(-1)
        order = held.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., : self.places]
        empty = torch.arange(self.places) >= counts[..., None]
        self.columns = torch.where(empty, length, order)
        flat = torch.arange(ranks * self.places).expand(rows, -1)
        wide = torch.empty(rows, length + 1, dtype=torch.int64).scatter_(1, self.columns.flatten(1), flat)
        self.inverse = wide[:, :length]

    @cached_property
    def starts(self) -> Tensor:
        """The first column of each column's document: int64 [rows, length]."""
        place = torch.arange(self.length).expand(self.rows, -1)
        new = torch.ones_like(self.segments, dtype=torch.bool)
        new[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        return torch.where(new, place, 0).cummax(1).values

    def _reach(self, open: Tensor) -> Tensor:
        """Where the open columns of each column's document end: int64 [rows, length]."""
        closed = (~open).cumsum(1) - (~open).long()  # before each column
        leading = open & (closed == closed.gather(1, self.starts))
        if (open & ~leading & (self.segments != 0)).any():
            problem = "columns that all of a document may look at stand after others, and ranks share the columns of each row"
            raise RecipeError(problem, key="mesh.context", mend="use the data or tensor axis with this task")
        return self.starts + torch.zeros_like(closed).scatter_add_(1, self.starts, leading.long()).gather(1, self.starts)

    def _owners(self) -> Tensor:
        """The rank of each column: int64 [rows, length]."""
        count, place = self.ranks, torch.arange(self.length).expand(self.rows, -1)
        last = torch.ones_like(self.segments, dtype=torch.bool)
        last[:, :-1] = self.segments[:, 1:] != self.segments[:, :-1]
        stops = torch.where(last, place, self.length).flip(1).cummin(1).values.flip(1) + 1
        rank = torch.arange(count)

        def dealt(upto: Tensor) -> Tensor:  # how many of the first columns each rank gets, were they dealt one by one
            return (upto[..., None] - rank + count - 1).div(count, rounding_mode="floor")

        share = dealt(stops) - dealt(self.starts)
        early = (share + (self.starts % 2)[..., None]) // 2  # now the front gets an odd one, now the back: else later ranks had more work
        edges = torch.cat((early, (share - early).flip(-1)), -1).cumsum(-1)
        chunk = (edges <= (place - self.starts)[..., None]).sum(-1)
        return torch.where(chunk < count, chunk, 2 * count - 1 - chunk)

    def held(self, ranks: range) -> Tensor:
        """The columns of some neighbouring ranks together, in order of the text, empty places last: int64 [rows, places of all]."""
        return self.columns[:, ranks.start : ranks.stop].flatten(1).sort(-1).values

    def span(self, queries: range, keys: range, window: int | None) -> Span:
        """What the queries of some ranks look at among the keys of others, both as `held` gives them."""
        held = self.held(queries)
        column = held.clamp(max=self.length - 1)
        low = self.starts.gather(1, column)
        if window is not None:
            if self.reach is not None:
                raise RecipeError("attention to open columns and a window together can't be shared by ranks", key="mesh.context")
            low = torch.maximum(low, column - window + 1)
        high = column + 1 if self.reach is None else torch.maximum(column + 1, self.reach.gather(1, column))
        owned = torch.zeros(self.rows, self.length + 2, dtype=torch.int64)
        owned.scatter_(1, self.held(keys) + 1, 1)
        before = owned.cumsum(1)  # keys in columns before each
        first, last = before.gather(1, low), before.gather(1, high)
        nothing = (held == self.length) | (self.segments.gather(1, column) == 0)
        return Span.of(torch.where(nothing, 0, first), torch.where(nothing, 0, last))

    def costs(self) -> list[int]:
        """Pairs of queries and keys that each rank computes."""
        return [self.span(range(rank, rank + 1), range(self.ranks), None).pairs() for rank in range(self.ranks)]


def layouts(ranks: int, heads: int) -> Iterator[tuple[int, int]]:
    """(ring, exchange) sizes whose product is `ranks`, widest exchange of heads first, where `heads` can be dealt out."""
    for exchange in range(min(ranks, heads), 0, -1):
        if ranks % exchange == 0:
            yield ranks // exchange, exchange


def even(heads: int, ranks: int) -> list[int]:
    """How many of `heads` each of `ranks` gets."""
    return [math.ceil((heads - rank) / ranks) for rank in range(ranks)]
