"""How many directions a model's representations fill."""

from __future__ import annotations

import torch

from bessemer.evaluate.figure import Figure
from bessemer.evaluate.pictures import adapter_of, chosen, representations, store_of
from bessemer.evaluate.subject import Subject


def rank_me(subject: Subject, *, examples: str | None = None, modality: str = "picture", count: int = 1024) -> dict[str, Figure]:
    """The effective rank of representations: the exponential of the entropy of their singular values (Garrido et al. 2022, "RankMe").

    Low where representations have collapsed. Comparable between models only for the same examples and number of them.

    Args:
        examples, modality: as in linear_probe.
        count: at most so many held-out examples.

    Raises:
        DataError: there are no examples, or the model has no adapter for them.
    """
    store = store_of(subject, examples, "rank_me")
    adapter = adapter_of(subject, modality, "rank_me")
    numbers = chosen(store, "held_out", modality, subject.few(count, 64) or count, subject.seed)
    value = effective_rank(representations(subject, adapter, store, numbers))
    return {"rank": Figure(value, value, value, len(numbers))}


def effective_rank(representations: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values of [examples, width], each share raised by 1e-7 as in the paper."""
    values = torch.linalg.svdvals(representations.double())
    share = values / values.sum().clamp(min=1e-300) + 1e-7
    return float((-(share * share.log()).sum()).exp())
