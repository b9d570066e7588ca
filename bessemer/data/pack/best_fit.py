"""Best-fit decreasing: long documents first, each into the fullest row that still holds it."""

from __future__ import annotations

import numpy as np

from bessemer.data.rows import Array, Rows, spread


def best_fit(lengths: Array, length: int) -> Rows:
    """Packs documents whole, each into the fullest row that still holds it (Ding et al. 2024, arXiv:2404.10830).

    Claims: fewer truncations than concatenation at no more than 0.01% padding, better reading comprehension and
    fewer hallucinations. Documents longer than a row are cut into row-sized pieces and a rest.

    The rows are those of best-fit decreasing, found in bulk: all pieces of one size are placed at once, for equal
    pieces go to the rows with the least sufficient space, as many into each as fit. So the work grows with the number
    of distinct sizes, not of documents.

    Args:
        lengths: int64 [documents], tokens of each.
        length: tokens of a row.
    """
    document, start, size = cut(np.asarray(lengths, dtype=np.int64), length)
    order = np.argsort(-size, kind="stable")
    sizes, firsts = np.unique(-size[order], return_index=True)
    bounds = np.append(firsts, len(order))
    row_of = np.empty(len(order), dtype=np.int64)
    space = _Space(length)
    for place, each in enumerate(-sizes):
        row_of[order[bounds[place] : bounds[place + 1]]] = space.put(int(each), int(bounds[place + 1] - bounds[place]))
    return Rows.of(row_of[order], document[order], start[order], size[order], length)


def cut(lengths: Array, length: int) -> tuple[Array, Array, Array]:
    """Documents as pieces of at most `length` tokens: (document, start, size) of each, in order; empty ones are left out."""
    pieces = -(-lengths // length)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = spread(np.zeros_like(lengths), pieces) * length
    return document, start, np.minimum(lengths[document] - start, length)


class _Space:
    """The open rows, by how many tokens they still hold."""

    def __init__(self, length: int) -> None:
        self.length, self.rows = length, 0
        self.open: list[list[Array]] = [[] for _ in range(length)]
        self.occupied = np.zeros(length, dtype=bool)

    def put(self, size: int, count: int) -> Array:
        """The rows that `count` pieces of one size go to, opening new ones at the end."""
        placed: list[Array] = []
        for left in (np.flatnonzero(self.occupied[size:]) + size).tolist():
            rows = np.concatenate(self.open[left]) if len(self.open[left]) > 1 else self.open[left][0]
            self.open[left], self.occupied[left] = [], False
            count = self._fill(rows, left, size, count, placed)
            if not count:
                break
        if count:
            rows = np.arange(self.rows, self.rows + -(-count // (self.length // size)))
            self.rows += len(rows)
            self._fill(rows, self.length, size, count, placed)
        return np.concatenate(placed)

    def _fill(self, rows: Array, left: int, size: int, count: int, placed: list[Array]) -> int:
        """Puts pieces into rows with `left` tokens of space, as many into each as fit; returns the pieces that remain."""
        fit = left // size
        full = min(len(rows), count // fit)
        rest = count - full * fit if full < len(rows) else 0
        if full:
            placed.append(np.repeat(rows[:full], fit))
            self._keep(rows[:full], left - fit * size)
        if rest:
            placed.append(np.repeat(rows[full], rest))
            self._keep(rows[full : full + 1], left - rest * size)
        self._keep(rows[full + bool(rest) :], left)
        return count - full * fit - rest

    def _keep(self, rows: Array, left: int) -> None:
        if left and len(rows):
            self.open[left].append(rows)
            self.occupied[left] = True
