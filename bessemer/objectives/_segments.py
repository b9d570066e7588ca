"""What preparing a text batch takes: draws keyed by sample, and the columns of each document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.core.batch import Batch


class Segment(NamedTuple):
    """One document's columns [start, stop) of a row."""

    row: int
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)


def segments(batch: Batch) -> Iterator[Segment]:
    """The documents of a batch, row by row; padding is left out."""
    if batch.segments is None:
        for row in range(batch.rows):
            yield Segment(row, 0, batch.tokens.shape[1])
        return
    for row, numbers in enumerate(batch.segments.numpy()):
        edges = numpy.flatnonzero(numpy.diff(numbers)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(numbers)], strict=True):
            if numbers[start]:
                yield Segment(row, start, stop)


def inside(batch: Batch) -> Tensor:
    """bool [rows, length]: False in the padding."""
    return torch.ones_like(batch.tokens, dtype=torch.bool) if batch.segments is None else batch.segments != 0


def draws(batch: Batch, seed: int, purpose: str) -> list[numpy.random.Generator]:
    """A generator for each row, keyed by its sample and the task, so nothing depends on how rows were cut into batches."""
    assert batch.samples is not None
    return [rng.numpy_generator(seed, purpose, batch.task, sample) for sample in batch.samples.tolist()]


def chances(batch: Batch, seed: int, purpose: str) -> Tensor:
    """float32 [rows, length], uniform in [0, 1)."""
    length = batch.tokens.shape[1]
    return torch.from_numpy(numpy.stack([draw.random(length, dtype=numpy.float32) for draw in draws(batch, seed, purpose)]))


def in_place(batch: Batch) -> Tensor:
    """int64 [rows, length]: every document's own tokens, each at the column where it is otherwise the target.

    What predicts tokens where they stand (masked language, diffusion) reads these instead of `batch.tokens`, which are
    shifted by one.
    """
    assert batch.targets is not None
    return torch.where(inside(batch), batch.targets, batch.tokens)


def counted(batch: Batch, stream: str = "next_token") -> Tensor:
    """bool [rows, length]: the tokens that may be targets; told prefixes and padding may not."""
    return batch.weights[stream] > 0


def everywhere(batch: Batch) -> Tensor:
    """bool [rows, length], all True: each document's tokens see all of it."""
    return torch.ones_like(batch.tokens, dtype=torch.bool)


def blanked(tokens: Tensor, chosen: Tensor, mask: int) -> Tensor:
    """The tokens with the chosen ones masked."""
    return torch.where(chosen, torch.as_tensor(mask), tokens)
