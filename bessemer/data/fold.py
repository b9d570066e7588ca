"""Rows cut into shorter ones where no document crosses the cuts, so that short documents pay for short attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bessemer.core.batch import Batch

LEAST = 64
"""Shorter rows are not made: attention costs little there, and every length is compiled anew."""


def folded(batch: Batch, least: int = LEAST) -> Batch:
    """The same columns in more and shorter rows, the shortest of `least` columns or more that halving gives without cutting a document.

    What attention costs falls with the length of the rows; nothing else changes, so gradients stay. Values of a row are repeated
    for its parts. Where each part is one document, attention needs no mask, and the segments go. A batch with streams or weights of other
    shapes, such as pictures, is given back as it is.
    """
    rows, length = batch.tokens.shape
    whole = [*batch.weights.values(), *(value for value in batch.streams.values() if value.ndim > 1)]
    if batch.segments is None or any(value.shape[:2] != (rows, length) for value in whole):
        return batch
    width = length
    while width % 2 == 0 and width // 2 >= least and not _crossed(batch.segments, width // 2):
        width //= 2
    if width == length:
        return batch
    parts = length // width

    def cut(value: Tensor) -> Tensor:
        return value.reshape(rows * parts, width, *value.shape[2:]) if value.ndim > 1 else value.repeat_interleave(parts, 0)

    made = batch.map(cut)
    assert made.segments is not None
    alone = bool((made.segments == made.segments[:, :1]).all() and (made.segments > 0).all())
    return replace(made, segments=None) if alone else made


def _crossed(segments: Tensor, width: int) -> bool:
    """Whether a document goes on over a multiple of `width` columns."""
    edges = torch.arange(width, segments.shape[1], width)
    before, after = segments[:, edges - 1], segments[:, edges]
    return bool(((before == after) & (after > 0)).any())
