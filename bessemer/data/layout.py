"""From rows to a batch: every place of every row filled at once, without a loop over documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bessemer.core.batch import Batch
from bessemer.data.prefixes import Prefixed
from bessemer.data.rows import Array, Rows, spread
from bessemer.data.tokens import Tokens


class Layout:
    """Where the pieces of some rows stand in the batch made of them.

    Attributes:
        piece: int64 [pieces], their numbers in `rows`, row by row.
        size: int64 [pieces], tokens of each.
        row, column: int64 [pieces], the place of each piece's first token.
        number: int64 [pieces], which piece of its row it is, from 1.
        before: int64 [pieces], tokens of all pieces before it.
        full: whether no place is padding.
    """

    def __init__(self, rows: Rows, chosen: Array) -> None:
        self.height, self.length = len(chosen), rows.length
        pieces_in = rows.offsets[chosen + 1] - rows.offsets[chosen]
        self.piece = spread(rows.offsets[chosen], pieces_in)
        self.size = rows.size[self.piece]
        self.row = np.repeat(np.arange(self.height), pieces_in)
        first = (np.cumsum(pieces_in) - pieces_in)[self.row]
        self.number = np.arange(len(self.piece)) - first + 1
        self.before = np.cumsum(self.size) - self.size
        self.column = self.before - self.before[first]
        self.total = int(self.size.sum())
        self.full = self.total == self.height * self.length
        self._place = None if self.full else spread(self.row * self.length + self.column, self.size)

    def lay(self, values: Array, fill: float, dtype: Any) -> torch.Tensor:
        """[rows, length]: one value for each token of the pieces in order, `fill` in the padding."""
        if self._place is None:
            flat = np.asarray(values, dtype=dtype)
        else:
            flat = np.full(self.height * self.length, fill, dtype=dtype)
            flat[self._place] = values
        return torch.from_numpy(flat.reshape(self.height, self.length))


def gather(tokens: Tokens | Prefixed, rows: Rows, chosen: Array, places: bool = False) -> Batch:
    """The chosen rows as a batch with the stream `next_token` of weights: 1 for every token that counts, 0 for padding.

    Args:
        chosen: int64, numbers of rows.
        places: add the stream `place`, where in the store each target stands, -1 in the padding.
    """
    layout = Layout(rows, chosen)
    piece, size = layout.piece, layout.size
    start = rows.start[piece]
    targets, heads = _read(tokens, tokens.starts[rows.document[piece]] + start, size, start > 0)
    read = np.empty_like(targets)
    read[1:] = targets[:-1]
    read[layout.before] = heads
    counts = tokens.counted(tokens.starts[rows.document[piece]] + start, size) if isinstance(tokens, Prefixed) else np.ones(layout.total, np.float32)
    alone = not rows.masked or (layout.full and len(piece) == len(chosen))
    positions = spread(np.zeros_like(size) if rows.masked else layout.column, size)
    streams = {"place": layout.lay(spread(tokens.starts[rows.document[piece]] + start, size), -1, np.int64)} if places else {}
    return Batch(
        streams=streams,
        tokens=layout.lay(read, tokens.pad, np.int64),
        positions=layout.lay(positions, 0, np.int64),
        segments=None if alone else layout.lay(np.repeat(layout.number, size), 0, np.int64),
        targets=layout.lay(targets, tokens.pad, np.int64),
        weights={"next_token": layout.lay(counts, 0.0, np.float32)},
    )


def _read(tokens: Tokens | Prefixed, begin: Array, size: Array, inner: Array) -> tuple[Array, Array]:
    """The pieces' tokens, and what is read before the first of each: `begin` where a document starts, else the token before."""
    found = tokens.take(begin - inner, size + inner)  # one more token for those that start inside a document
    heads = np.full(len(begin), tokens.begin, dtype=np.int64)
    if inner.any():
        before = (np.cumsum(size + inner) - size - inner)[inner]
        heads[inner] = found[before]
        found = np.delete(found, before)
    return found, heads
