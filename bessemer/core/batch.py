"""The one batch every stage of training speaks: packed tokens and named streams beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import bessemer.core.device  # noqa: F401 - every model imports this file, and it must set up the machine before the first product


@dataclass
class Batch:
    """One micro-batch. Pre-training, tuning, distillation and RL differ in who fills the streams, never in the loop.

    Attributes:
        tokens: int64 [rows, length], what the model reads.
        positions: int64 [rows, length], starting again from 0 at each document.
        segments: int64 [rows, length], a number for each document of a row from 1 on; 0 marks padding. Attention
            stays inside equal segments. None when each row is one document.
        targets: int64 [rows, length], the token that follows, meaningless where every weight is 0.
        weights: a stream per term, float32 [rows, length] (or [rows], or whatever the term counts): how much each
            element counts. A term's count is the sum of its stream, so it is known before the forward pass.
        streams: anything else, by name, with rows first: patches, behaviour log-probabilities, advantages.
        samples: int64 [rows], the global index of each row's sample: what the guard logs and tests count.
        sources: int64 [rows], which source of the mixture each row came from.
        task: the name of the task whose objective reads this batch.
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

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def count(self, name: str) -> Tensor:
        """What the term `name` is divided by, as far as this batch goes: the float64 sum of its weights."""
        return self.weights[name].sum(dtype=torch.float64)

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
        )

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda value: value.to(device, non_blocking=True))

    def rows_of(self, start: int, stop: int) -> Batch:
        """Rows start to stop as a batch of their own."""
        return self.map(lambda value: value[start:stop])


@dataclass
class Outputs:
    """What a model makes of a batch.

    Attributes:
        hidden: [rows, length, width], the trunk's last state, after its final norm.
        head: maps hidden states to logits; objectives call it on chunks so the full logits are never held.
        extras: anything else objectives may read, by name (router statistics, further heads' states).
    """

    hidden: Tensor
    head: torch.nn.Module
    extras: dict[str, Tensor] = field(default_factory=dict)

    def logits(self) -> Tensor:
        """[rows, length, vocabulary]; for evaluation and small models."""
        return self.head(self.hidden)
