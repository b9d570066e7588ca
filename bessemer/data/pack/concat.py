"""Documents one after the other, cut into rows."""

from __future__ import annotations

import numpy as np

from bessemer.data.rows import Array, Rows, spread


def concat(lengths: Array, length: int, *, masked: bool = False) -> Rows:
    """Concatenates documents in their order and cuts the stream into rows, crossing documents (Brown et al. 2020).

    No place is padded but the last row's end; the price is that documents are cut wherever a row ends.

    Args:
        lengths: int64 [documents], tokens of each.
        length: tokens of a row.
        masked: keep attention inside documents and start positions again at each; by default a row is read as one text.
    """
    ends = np.cumsum(lengths)
    begins = ends - lengths
    first, last = begins // length, np.maximum(ends - 1, begins) // length
    pieces = np.where(lengths > 0, last - first + 1, 0)
    document = np.repeat(np.arange(len(lengths)), pieces)
    row = spread(first, pieces)
    begin = np.maximum(begins[document], row * length)
    end = np.minimum(ends[document], (row + 1) * length)
    return Rows.of(row, document, begin - begins[document], end - begin, length, masked=masked)
