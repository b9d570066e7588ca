"""Naming what is in a picture by the likeness of captions, without having learned the names."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bessemer.core.errors import RecipeError
from bessemer.data.example_store import Examples
from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.pictures import Pairs, chosen, label_names, labels_of, store_of
from bessemer.evaluate.subject import Subject


def zero_shot(
    subject: Subject,
    *,
    examples: str | None = None,
    task: str | None = None,
    labels: list[str] = [],
    templates: list[str] = [],
    captions: int = 64,
    test: int = 1024,
) -> dict[str, Figure]:
    """Accuracy of taking the label whose captions are most like the picture, by label (Radford et al. 2021, "CLIP", section 3.1).

    A label's likeness is the mean over its captions: the templates with the label in the place of {}, or training captions that
    hold the label's words. Chance is one over the number of labels.

    Args:
        examples: the stage that made them; None: the only one.
        task: the model's contrastive task to compare by; None: the only one.
        labels: which facts; none named: all.
        templates: such as "a picture of a {}"; none: captions of the training part.
        captions: at most so many of these for each label.
        test: at most so many held-out examples.

    Raises:
        DataError: there are no examples, or none of their captions names a label.
        RecipeError: the model was trained on no such task, or a template has no place for the label.
    """
    for template in templates:
        if "{}" not in template:
            raise RecipeError(f"'{template}' has no place for a label", key="zero_shot.templates", mend="write {} where it stands")
    store, pairs = store_of(subject, examples, "zero_shot"), Pairs(subject, task)
    numbers = chosen(store, "held_out", pairs.objective.adapter.modality, subject.few(test, 64) or test, subject.seed)
    pictures = pairs.of_examples(store, numbers)
    said = sorted({store.texts[number] for number in store.members("train", captioned=True).tolist()})
    found = {}
    for name in label_names(store, labels, "zero_shot"):
        truth, names = labels_of(store, numbers, name)
        likeness = [_likeness(pairs, pictures, _captions(each, templates, said, captions, subject.seed), store) for each in names]
        if any(each is None for each in likeness):
            continue
        hits = torch.stack([each for each in likeness if each is not None], -1).argmax(-1) == truth
        known = truth >= 0
        found[name] = ratio(hits[known].numpy(), known[known].numpy(), subject.seed, f"zero_shot/{name}")
    if not found:
        raise RecipeError("no caption names any of the labels", key="zero_shot.templates", mend='give templates: ["a picture of a {}"]')
    return found


def _captions(label: str, templates: list[str], said: list[str], most: int, seed: int) -> list[str]:
    """Captions that name a label: whole words, a plural s counted as the word."""
    if templates:
        return [template.replace("{}", label) for template in templates]
    wanted = f" {label} "
    naming = [text for text in said if wanted in f" {text} " or f" {label}s " in f" {text} " or f" {label}es " in f" {text} "]
    order = torch.randperm(len(naming), generator=torch.Generator().manual_seed(seed)).tolist()
    return [naming[place] for place in order[:most]]


def _likeness(pairs: Pairs, pictures: dict[str, torch.Tensor], captions: list[str], store: Examples) -> torch.Tensor | None:
    if not captions:
        return None
    sides = pairs.of_captions(captions, store)
    if "caption" in sides:
        sides = {"caption": F.normalize(sides["caption"].mean(0, keepdim=True), dim=-1)}
    return pairs.compare(pictures, sides).mean(-1)
