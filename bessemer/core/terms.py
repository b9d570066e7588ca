"""Objectives never divide: a term is a sum, and what it is counted over is known from the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One addend of the loss.

    Attributes:
        sum: 0-d tensor, the weighted sum over this micro-batch, with its graph.
        over: the weight stream of the batch whose global sum divides it.
        scale: its factor in the total loss; 0 for a figure that is only reported.
    """

    sum: Tensor
    over: str
    scale: float = 1.0


@dataclass
class Terms:
    """name -> Term. The engine sums terms over micro-batches and ranks and divides once, by global counts."""

    terms: dict[str, Term] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, over: str | None = None, scale: float = 1.0) -> None:
        self.terms[name] = Term(total, over or name, scale)

    def __iter__(self) -> Iterator[tuple[str, Term]]:
        return iter(self.terms.items())

    def __getitem__(self, name: str) -> Term:
        return self.terms[name]
