"""What an example's neighbours say of it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bessemer.core.errors import RecipeError
from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.pictures import adapter_of, chosen, label_names, labels_of, representations, store_of
from bessemer.evaluate.subject import Subject


def nearest(
    subject: Subject,
    *,
    examples: str | None = None,
    modality: str = "picture",
    labels: list[str] = [],
    k: int = 20,
    temperature: float = 0.07,
    train: int = 2048,
    test: int = 1024,
) -> dict[str, Figure]:
    """Accuracy on held-out examples of a vote of the k nearest representations, weighted by likeness, by label (Wu et al. 2018).

    Args:
        examples, modality, labels, train, test: as in linear_probe.
        k: neighbours.
        temperature: a neighbour's vote counts exp(cosine / temperature).

    Raises:
        DataError: there are no examples, or no such labels, or the model has no adapter for them.
        RecipeError: k is below 1.
    """
    if k < 1:
        raise RecipeError(f"{k} is too small; it must be at least 1", key="nearest.k")
    store = store_of(subject, examples, "nearest")
    adapter = adapter_of(subject, modality, "nearest")
    seen = chosen(store, "train", modality, subject.few(train, 64) or train, subject.seed)
    unseen = chosen(store, "held_out", modality, subject.few(test, 64) or test, subject.seed)
    known, asked = (representations(subject, adapter, store, numbers) for numbers in (seen, unseen))
    centre = known.mean(0)
    likeness, place = (F.normalize(asked - centre, dim=-1) @ F.normalize(known - centre, dim=-1).T).topk(min(k, len(known)))
    found = {}
    for name in label_names(store, labels, "nearest"):
        (given, names), (truth, _) = labels_of(store, seen, name), labels_of(store, unseen, name)
        votes = torch.zeros(len(unseen), len(names) + 1)
        votes.scatter_add_(1, given[place] + 1, (likeness / temperature).exp())
        hits, counted = votes[:, 1:].argmax(-1) == truth, truth >= 0
        if bool(counted.any()):
            found[name] = ratio(hits[counted].numpy(), counted[counted].numpy(), subject.seed, f"nearest/{name}")
    return found
