"""What is measured: a model with its tokenizer, and how the measuring is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bessemer.data.example_store import Examples
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.serve.generate import check_vocabulary, context_of


def _silent(done: float, total: float | None, unit: str) -> None:
    return None


@dataclass
class Subject:
    """A model under evaluation.

    Attributes:
        model: Batch -> Outputs; used on the device and in the type it has.
        tokenizer: what its tokens mean.
        tokens: a token store with held-out documents, for tasks that read one.
        examples: example stores, for tasks that look at pictures and the like.
        seed: of the bootstrap and of anything drawn.
        smoke: everything at its smallest.
        progress: told how far a task is: done, total, unit.
    """

    model: nn.Module
    tokenizer: Tokenizer
    tokens: Tokens | None = None
    seed: int = 0
    smoke: bool = False
    progress: Callable[[float, float | None, str], Any] = _silent
    examples: Sequence[Examples] = ()

    def __post_init__(self) -> None:
        check_vocabulary(self.model, self.tokenizer)

    @property
    def context(self) -> int:
        """How many tokens the model reads at most."""
        return context_of(self.model)

    def few(self, wanted: int | None, smallest: int) -> int | None:
        """How much to take: `wanted` (None for all), but no more than `smallest` in a smoke run."""
        return min(wanted or smallest, smallest) if self.smoke else wanted


@contextmanager
def at_rest(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode without gradients, and as it was before on leaving; gives its device."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module in training:
            module.training = True
