"""The held-out documents in order, each scored whole: what bits per byte are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import DataError, RecipeError
from bessemer.data.layout import Layout, gather
from bessemer.data.pack.best_fit import best_fit
from bessemer.data.rows import Array, Rows
from bessemer.data.tokens import By, Split, Tokens


def held_out_batches(
    tokens: Tokens,
    *,
    length: int,
    rows: int,
    domain: str | None = None,
    by: By = "domain",
    split: Split = "held_out",
    overlap: int | None = None,
    limit: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """Batches in which every byte of the chosen documents is scored exactly once.

    Bits per byte = sum(loss * weights["next_token"]) / ln 2 / sum(weights["bytes"]), over all batches and ranks. The end
    token is not scored: it stands for no byte. A document's tokens carry its UTF-8 bytes; where a tokenizer changes the
    text (normalisation), the last token makes up the difference, so the sum is always that of the text itself.

    A document longer than a row is read in windows that overlap by `overlap` tokens; the overlap is context only, so
    every token but the first `length` of a document sees at least `overlap` tokens before it. Short documents share
    rows, each a segment of its own.

    Args:
        length: tokens of a row.
        rows: the most rows of a batch.
        domain: only this domain (or source, as `by` says); all by default.
        overlap: tokens of context a window repeats, below `length`; a quarter of it by default.
        limit: take documents in order only until they have this many tokens; at least one is taken.
        rank, ranks: batches rank, rank + ranks, ... are this rank's.

    Yields:
        batches with weights "next_token" (1 where scored) and "bytes", both float32 [rows, length], and the stream "document",
        int64 [rows, length]: each token's document, -1 in the padding.

    Raises:
        DataError: the split has no such document.
        RecipeError: `overlap` is not from 0 to length - 1.
    """
    overlap = length // 4 if overlap is None else overlap
    if length < 1 or not 0 <= overlap < length:
        raise RecipeError(f"windows of {length} tokens can't overlap by {overlap}", key="overlap", mend="it is from 0 to length - 1")
    chosen = tokens.documents(split, by, domain)
    if limit is not None:
        chosen = chosen[: 1 + int(np.searchsorted(np.cumsum(tokens.lengths[chosen]), limit))]
    if not len(chosen):
        of = f" of {by} '{domain}'" if domain else ""
        raise DataError(
            f"the {split} split has no document{of}", file=tokens.folder, key="held_out", mend="raise tokenize.held_out or collect more text"
        )
    packed, skip = windows(tokens.lengths[chosen], length, overlap)
    table = replace(packed, document=chosen[packed.document])
    byte_lengths = tokens.byte_lengths()
    for first in range(rank * rows, table.count, rows * ranks):
        picked = np.arange(first, min(first + rows, table.count))
        yield _scored(tokens, table, skip, byte_lengths, picked)


def windows(lengths: Array, length: int, overlap: int) -> tuple[Rows, Array]:
    """Rows of windows, and how many of each window's tokens were scored in the one before."""
    step = length - overlap
    pieces = np.maximum(1, -(-(lengths - overlap) // step))
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * step
    size = np.minimum(lengths[document] - start, length)
    packed = best_fit(size, length)
    window = packed.document
    return replace(packed, document=document[window], start=start[window]), np.where(start[window] > 0, overlap, 0)


def _scored(tokens: Tokens, table: Rows, skip: Array, byte_lengths: Array, picked: Array) -> Batch:
    batch = gather(tokens, table, picked)
    assert batch.targets is not None
    layout = Layout(table, picked)
    piece, size = layout.piece, layout.size
    document = table.document[piece]
    within = np.arange(layout.total) - np.repeat(layout.before, size)
    left = np.repeat(tokens.lengths[document] - table.start[piece], size) - within  # 1 at the end token
    scored = (within >= np.repeat(skip[piece], size)) & (left > 1)
    target = tokens.take(tokens.starts[document] + table.start[piece], size)
    counted = np.where(scored, byte_lengths[target], 0).astype(np.float32)
    last = np.flatnonzero(scored & (left == 2))
    counted[last] += _missing(tokens, np.repeat(document, size)[last], byte_lengths)
    batch.weights = {"next_token": layout.lay(scored, 0.0, np.float32), "bytes": layout.lay(counted, 0.0, np.float32)}
    batch.streams = {"document": layout.lay(np.repeat(document, size), -1, np.int64)}
    batch.samples = torch.from_numpy(picked)
    return batch


def _missing(tokens: Tokens, document: Array, byte_lengths: Array) -> Array:
    """By how many bytes each document's text is longer than what its tokens stand for."""
    if not len(document):
        return np.zeros(0, dtype=np.int64)
    size = tokens.lengths[document]
    stream = tokens.take(tokens.starts[document], size)
    return tokens.bytes[document] - np.add.reduceat(byte_lengths[stream].astype(np.int64), np.cumsum(size) - size)
