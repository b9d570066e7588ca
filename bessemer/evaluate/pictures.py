"""What a model makes of examples: representations, and likeness of pictures and captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.core.errors import DataError, RecipeError, neighbours
from bessemer.data.example import Array
from bessemer.data.example_loader import encoded
from bessemer.data.example_store import Examples
from bessemer.evaluate.subject import Subject, at_rest
from bessemer.models.attach import objective_of, tasks_with

ROWS = 128


def store_of(subject: Subject, name: str | None, task: str) -> Examples:
    """The example store to measure on: the one named, or the only one there is.

    Raises:
        DataError: there is none of that name, or several and no name.
    """
    found = {store.folder.name.lstrip("."): store for store in subject.examples}
    if name is not None and name in found:
        return found[name]
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    mend = (
        neighbours(name or "", found)
        if found
        else 'examples come from a stage do = "collect_examples", before in the recipe or in the run that is measured'
    )
    problem = f"there are no examples called '{name}'" if name else f"there are {len(found)} example stores and one is wanted"
    raise DataError(problem, key=f"{task}.examples", mend=mend)


def adapter_of(subject: Subject, modality: str, task: str) -> Any:
    """The model's adapter of a modality.

    Raises:
        DataError: it has none.
    """
    adapters = getattr(subject.model, "adapters", {})
    for adapter in adapters.values():
        if adapter.modality == modality:
            return adapter
    raise DataError(f"the model has no adapter for a {modality}", key=task, mend="measure a model that a task with an adapter trained")


def chosen(store: Examples, part: str, modality: str, most: int, seed: int, *, captioned: bool = False) -> Array:
    """The numbers of at most `most` examples of a part, drawn by a key.

    Raises:
        DataError: there is none.
    """
    found = store.members(part, modality, captioned)
    if not len(found):
        raise DataError(f"no example of the {part} part has a {modality}{' and a caption' if captioned else ''}", file=store.folder, key=modality)
    order = rng.permute(np.arange(len(found)), len(found), rng.key(seed, "evaluate", part))
    return np.sort(found[order[:most]])


def representations(subject: Subject, adapter: Any, store: Examples, numbers: Array) -> Tensor:
    """The mean over an input's pieces of the trunk's last states, read in both directions: float32 [examples, width]."""
    found = []
    with at_rest(subject.model) as device:
        for start in range(0, len(numbers), ROWS):
            values = adapter.cut(torch.from_numpy(store.take(adapter.modality, numbers[start : start + ROWS])))
            count, pieces = values.shape[:2]
            columns = torch.arange(pieces).expand(count, pieces)
            streams = {adapter.stream: values, f"{adapter.stream}_place": columns, f"{adapter.stream}_index": columns}
            tokens = torch.zeros_like(columns)
            batch = Batch(tokens, columns, torch.ones_like(columns), streams=streams, open=torch.ones_like(columns, dtype=torch.bool))
            found.append(subject.model(batch.to(device)).hidden.float().mean(1).cpu())
            subject.progress(start + count, len(numbers), "examples")
    return torch.cat(found)


def labels_of(store: Examples, numbers: Array, name: str) -> tuple[Tensor, list[str]]:
    """int64 [examples] and the names they stand for; -1 where an example has no such label."""
    held = [store.labels[number].get(name) for number in numbers.tolist()]
    names = sorted({each for labels in store.labels if (each := labels.get(name)) is not None})
    place = {each: number for number, each in enumerate(names)}
    return torch.tensor([-1 if each is None else place[each] for each in held]), names


def label_names(store: Examples, wanted: list[str], task: str) -> list[str]:
    """The labels to probe for: those named, or all.

    Raises:
        DataError: the examples have no labels, or not one of those named.
    """
    known = sorted({name for labels in store.labels for name in labels})
    for name in wanted:
        if name not in known:
            raise DataError(f"the examples have no label '{name}'", file=store.folder, key=f"{task}.labels", mend=neighbours(name, known))
    if not known:
        raise DataError("the examples have no labels", file=store.folder, key=task)
    return wanted or known


class Pairs:
    """A model's own measure of how alike pictures and captions are, by one of its contrastive tasks.

    Args:
        task: the name of the task; None: the only one there is.

    Raises:
        RecipeError: the model was trained on no such task.
    """

    def __init__(self, subject: Subject, task: str | None) -> None:
        known = tasks_with(subject.model, "clip", "filip") if hasattr(subject.model, "attached") else []
        name = task if task is not None else known[0] if len(known) == 1 else None
        if name not in known:
            problem = (
                f"the model has {len(known)} tasks that compare pictures and captions"
                if task is None
                else f"'{task}' compares no pictures and captions"
            )
            raise RecipeError(problem, key="task", mend=f"its tasks that do: {', '.join(known) or 'none'}")
        self.subject, self.objective = subject, objective_of(subject.model, str(name))

    def of_examples(self, store: Examples, numbers: Array) -> dict[str, Tensor]:
        """What `compare` takes, of examples' pictures and captions."""
        return self._sides(store.take(self.objective.adapter.modality, numbers), [store.texts[number] for number in numbers.tolist()], store)

    def of_captions(self, texts: list[str], store: Examples) -> dict[str, Tensor]:
        """What `compare` takes, of captions alone."""
        return self._sides(np.zeros((len(texts), *self.objective.adapter.shape), np.uint8), texts, store)

    def compare(self, pictures: dict[str, Tensor], captions: dict[str, Tensor]) -> Tensor:
        """float32 [pictures, captions]."""
        with torch.no_grad():
            return self.objective.compare(pictures, captions)

    def _sides(self, values: Array, texts: list[str], store: Examples) -> dict[str, Tensor]:
        objective, found = self.objective, []
        with at_rest(self.subject.model) as device:
            for start in range(0, len(texts), ROWS):
                said = encoded(self.subject.tokenizer, texts[start : start + ROWS], objective.words)[:, None]
                raw = torch.from_numpy(values[start : start + ROWS])[:, None]
                draw = torch.arange(start, start + len(said))[:, None]
                tokens = torch.full((len(said), objective.columns), self.subject.tokenizer.pad)
                streams = {objective.adapter.modality: raw, "caption": said, "draw": draw}
                batch = Batch(tokens, torch.zeros_like(tokens), streams=streams, samples=draw[:, 0])
                made = objective.prepare(batch, 0).to(device)
                found.append(
                    {
                        name: value.float().cpu() if name != "valid" else value.cpu()
                        for name, value in objective.sides(self.subject.model(made), made).items()
                    }
                )
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}
