"""A span hidden in each held-out document, and how well a model of one or another objective knows what stood there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from objective_bench import LENGTH, ROWS, Bench
from objective_texts import HIDDEN
from torch.nn import functional as F

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.data.loader import Loader
from bessemer.objectives._segments import segments

Span = tuple[int, int, int, int]
"""Row, start and stop of the document in it, and the place of the first hidden token."""
Arrange = Callable[[Batch, list[Span], int], tuple[Batch, torch.Tensor]]
"""From held-out rows, their spans and the tokens hidden of each: what the model reads, and where the hidden tokens are its targets."""


def spans(bench: Bench, name: str) -> Iterator[tuple[Batch, list[Span]]]:
    """Held-out rows with one span to hide in each document of 24 tokens or more: (row, document's start, stop, place of the span).

    Of `copies` it is the first line, which no one can know from the left.
    """
    loader = Loader(bench.tokens(name), length=LENGTH, mix=None, split="held_out", seed=1)
    for start in range(0, ROWS * (2 if bench.quick else 12), ROWS):
        batch, chosen = loader.batch(start, ROWS), []
        for each in segments(batch):
            if each.stop - each.start >= 24:
                draw = rng.numpy_generator(0, "hide", start + each.row, each.start)
                width = each.stop - each.start
                place = 0 if name == "copies" else int(draw.integers(8, width - HIDDEN[name] - 8))
                chosen.append((each.row, each.start, each.stop, each.start + place))
        yield batch, chosen


def hidden_nats(bench: Bench, model: Any, arrange: Arrange, name: str = "text") -> float:
    """Nats per hidden token; `arrange` gives the batch to read and where (row by row) the hidden tokens are targets."""
    total, count = 0.0, 0
    for batch, chosen in spans(bench, name):
        ready, where = arrange(batch, chosen, HIDDEN[name])
        with torch.no_grad():
            losses = F.cross_entropy(model(ready).logits().flatten(0, 1), ready.targets.flatten(), reduction="none").view_as(where)
        total, count = total + float(losses[where].sum()), count + int(where.sum())
    return total / count


def from_the_left(batch: Batch, chosen: list[Span], hidden: int) -> tuple[Batch, torch.Tensor]:
    where = torch.zeros_like(batch.tokens, dtype=torch.bool)
    for row, _, _, place in chosen:
        where[row, place : place + hidden] = True
    return batch, where


def as_blank(objective: Any) -> Arrange:
    """The span behind a blank, as the regular denoiser has it; the document's last three tokens give their places."""

    def arrange(batch: Batch, chosen: list[Span], hidden: int) -> tuple[Batch, torch.Tensor]:
        tokens, targets, prefix = batch.tokens.clone(), batch.targets.clone(), torch.zeros_like(batch.tokens, dtype=torch.bool)
        where, first, second = torch.zeros_like(prefix), int(objective.blanks[0]), int(objective.blanks[1])
        for row, start, stop, place in chosen:
            document, at = batch.targets[row, start : stop - 3].tolist(), place - start
            task = [objective.modes["regular"], *document[:at], first, *document[at + hidden :]]
            whole = torch.tensor([*task, first, *document[at : at + hidden], second])
            tokens[row, start:stop], targets[row, start:stop] = whole[:-1], whole[1:]
            prefix[row, start : start + len(task)] = True
            where[row, start + len(task) : start + len(task) + hidden] = True
        return replace(batch, tokens=tokens, targets=targets, open=prefix), where

    return arrange


def as_masked(mask: int) -> Arrange:
    """The span masked where it stands, all of it at once."""

    def arrange(batch: Batch, chosen: list[Span], hidden: int) -> tuple[Batch, torch.Tensor]:
        _, where = from_the_left(batch, chosen, hidden)
        inside = torch.ones_like(where) if batch.segments is None else batch.segments > 0
        tokens = torch.where(where, mask, torch.where(inside, batch.targets, batch.tokens))
        return replace(batch, tokens=tokens, open=torch.ones_like(where)), where

    return arrange
