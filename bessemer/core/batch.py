"""The one batch every stage of training speaks: packed tokens and named streams beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import bessemer.core.device  # noqa: F401 - every model imports this file, and it must set up the machine before the first product
from bessemer.core.terms import Terms

TOKENS = "tokens"
"""A stream that every batch has without being told: 1 at each token, 0 at padding."""


@dataclass
class Batch:
    """One micro-batch. Pre-training, tuning, distillation and RL differ in who fills the streams, never in the loop.

    Attributes:
        tokens: int64 [rows, length], what the model reads.
        positions: int64 [rows, length], starting again from 0 at each document.
        segments: int64 [rows, length], a number for each document of a row from 1 on; 0 marks padding. Attention
            stays inside equal segments. None when each row is one document.
        first: what an objective does with the batch as the first thing of the model's pass, on its device; None: nothing.
        open: bool [rows, length], columns that every token of their segment may look at, later ones too. None: attention is
            causal; all True: it is bidirectional; True on a segment's beginning: that is a prefix.
        targets: int64 [rows, length], the token that follows, meaningless where every weight is 0.
        weights: a stream per term, float32 [rows, length] (or [rows], or whatever the term counts): how much each
            element counts. A term's count is the sum of its stream, so it is known before the forward pass.
        streams: anything else, by name, with rows first: patches, behaviour log-probabilities, advantages.
        samples: int64 [rows], the global index of each row's sample: what the guard logs and tests count.
        sources: int64 [rows], which source of the mixture each row came from.
        task: the name of the task whose objective reads this batch.
        spread: who knows the other columns where this batch holds only some of each row (models/layers/attention.py); None: all are here.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor | None = None
    targets: Tensor | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)
    samples: Tensor | None = None
    sources: Tensor | None = None
    task: str = "text"
    open: Tensor | None = None
    first: Callable[[Batch], Batch] | None = None
    spread: Any = None

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def count(self, name: str) -> Tensor:
        """What the term `name` is divided by, as far as this batch goes: the float64 sum of its weights."""
        if name == TOKENS and name not in self.weights:
            counted = self.tokens.numel() if self.segments is None else self.segments.count_nonzero()
            return torch.as_tensor(counted, dtype=torch.float64)
        return self.weights[name].sum(dtype=torch.float64)

    def counts(self) -> dict[str, Tensor]:
        """What terms of this batch are divided by, as far as it goes, by stream."""
        return {name: self.count(name) for name in {**self.weights, TOKENS: None}}

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `change` applied to every tensor."""

        def each(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        return replace(
            self,
            tokens=change(self.tokens),
            positions=change(self.positions),
            segments=each(self.segments),
            targets=each(self.targets),
            weights={name: change(value) for name, value in self.weights.items()},
            streams={name: change(value) for name, value in self.streams.items()},
            samples=each(self.samples),
            sources=each(self.sources),
            open=each(self.open),
        )

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda value: value.to(device, non_blocking=True))

    def blank(self, rows: int = 1) -> Batch:
        """Rows of padding in the form of this batch, which count for nothing: what a rank without rows computes."""
        return replace(self, segments=torch.zeros_like(self.tokens)).map(lambda value: value.new_zeros((rows, *value.shape[1:])))

    def padded(self, rows: int) -> Batch:
        """This batch with rows of padding at its end, `rows` in all."""
        if rows == self.rows:
            return self
        whole = replace(self, segments=torch.ones_like(self.tokens) if self.segments is None else self.segments)
        return whole.map(lambda value: torch.cat((value, value.new_zeros((rows - self.rows, *value.shape[1:])))))

    def without_inputs(self) -> Batch:
        """This batch without vectors to be laid among the tokens: for what begins with hidden states."""
        return replace(self, streams={name: value for name, value in self.streams.items() if not name.startswith("vectors")})

    def later(self, values: Tensor, number: int) -> Tensor:
        """What stands `number` columns further on in the rows of one of this batch's tensors [rows, length], and 0 beyond their ends."""
        whole = values if self.spread is None else self.spread.whole(values)
        moved = torch.cat((whole[:, number:], torch.zeros_like(whole[:, :number])), 1)
        return moved if self.spread is None else self.spread.mine(moved)

    def rows_of(self, start: int, stop: int) -> Batch:
        """Rows start to stop as a batch of their own."""
        return self.map(lambda value: value[start:stop])


@dataclass
class Outputs:
    """What a model makes of a batch.

    Attributes:
        hidden: [rows, length, width], the trunk's last state, after its final norm.
        head: maps hidden states to logits; objectives call it on chunks so the full logits are never held.
        batch: the batch as the trunk read it, which is what an objective goes by that changed it on the way; None: as it was given.
        again: another pass of the same trunk over another batch, for objectives that need two.
        extras: anything else objectives may read, by name (further heads' states).
        terms: what the model itself adds to the loss, whatever the objective (a router's balance).
        counts: what happened how often, by name: the engine sums them over micro-batches and ranks and hands them back after the
            step, to every module that has an `after_step(progress, optimizers, counts)`.
    """

    hidden: Tensor
    head: torch.nn.Module
    again: Callable[[Batch], Outputs] | None = None
    batch: Batch | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def logits(self) -> Tensor:
        """[rows, length, vocabulary]; for evaluation and small models."""
        return self.head(self.hidden)
