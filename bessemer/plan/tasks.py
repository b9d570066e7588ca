"""A dry run's tasks: their objectives on fake ranks, and the micro-batches of a step, of rows as loaders give them but without values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from bessemer.core.batch import Batch, Outputs
from bessemer.core.collectives import along
from bessemer.core.errors import BessemerError, DataError
from bessemer.core.mesh import ROWS, World
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.core.terms import Terms
from bessemer.models.adapters._adapter import Adapter
from bessemer.objectives._examples import FromExamples
from bessemer.objectives._objective import Objective
from bessemer.train import feeds
from bessemer.train.mixed import MIXED
from bessemer.train.source import Feed, Source
from bessemer.train.task import Task

if TYPE_CHECKING:
    from bessemer.plan.dry import Plan

STEPS = 64
"""The most steps whose micro-batches are averaged, until every task that is on has had some."""


class Untried(Exception):
    """A task's passes ask for something that only its data can tell."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task


@dataclass
class Passes:
    """What goes through the model in a step.

    Attributes:
        objectives: by task.
        kinds: a micro-batch of this rank's rows of each kind, and how many of them a step has.
    """

    objectives: Mapping[str, Objective]
    kinds: list[tuple[Batch, float]]


def passes(plan: Plan, model: Any, world: World) -> Passes:
    """What a step of the plan passes through the model its tasks are attached to.

    Raises:
        RecipeError: a task's options contradict the mesh or the rows.
        Untried: a task's rows can't be made up.
    """
    made = objectives(plan, model, world)
    one = feeds.mixed(plan.work, model, {name: (each, 1.0) for name, each in made.items()}, None) if plan.mixed else None
    supply = {task.name: _feed(plan, number, task, made[task.name]) for number, task in enumerate(plan.tasks)}
    ranks = world.count(*ROWS)
    source = Source(supply, plan.rows, ranks - 1, ranks, None if one is None else one.join)  # the last rank has no fewer rows than any
    try:
        kinds = _kinds(source, plan.rows * plan.micro_batches)
    finally:
        source.close()
    return Passes(made if one is None else {MIXED: one}, kinds)


def objectives(plan: Plan, model: Any, world: World | None = None) -> dict[str, Objective]:
    """The plan's objectives by task, attached to the model; next-token prediction stands in for those that need what isn't there yet.

    Raises:
        RecipeError: a task's options contradict the mesh.
        Untried: a teacher is yet to be trained.
    """
    ranks = along(None if world is None else world.group(*ROWS))
    words: Any = Words(plan.vocabulary)
    found: dict[str, Objective] = {}
    for number, task in enumerate(plan.tasks):
        try:
            made = feeds.objective(plan.work, model, number, task, words, ranks)
        except BessemerError as error:
            if error.key != "task.objective.teacher":
                raise
            if task.name not in plan.untried:
                raise Untried(task.name) from None
        found[task.name] = _Watched(task.name, choose("objectives", "next_token")() if task.name in plan.untried else made)
    return found


class Words:
    """A tokenizer that has whatever special token it is asked for."""

    begin = end = pad = 0

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary_size = vocabulary
        self.special_ids = _Every()

    def bytes_of(self, id: int) -> bytes:
        """As many as a token stands for in common text."""
        return b"text"


class _Every(dict[str, int]):
    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 0


class _Watched(Objective):
    """An objective that says whose it is when it asks for what only data holds, or a tensor without values for one."""

    def __init__(self, task: str, objective: Objective) -> None:
        self.task, self.objective, self.unit = task, objective, objective.unit

    def prepare(self, batch: Batch, seed: int) -> Batch:
        with _asked(self.task):
            return self.objective.prepare(batch, seed)

    @property
    def acts_before(self) -> bool:
        return self.objective.acts_before

    def before(self, batch: Batch) -> Batch:
        with _asked(self.task):
            return self.objective.before(batch)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        with _asked(self.task):
            return self.objective(outputs, batch)


@contextmanager
def _asked(task: str) -> Iterator[None]:
    try:
        yield
    except (DataError, DataDependentOutputException, DynamicOutputShapeException):
        raise Untried(task) from None


@dataclass
class _Rows:
    """Stands for a loader: each row one document, or as many examples as fit."""

    task: str
    length: int
    adapter: Adapter | None = None
    per_row: int = 0
    words: int = 0

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        samples = torch.arange(start + rows * rank // ranks, start + rows * (rank + 1) // ranks)
        tokens = torch.zeros(len(samples), self.length, dtype=torch.int64)
        if self.adapter is not None:
            return Batch(tokens, tokens.clone(), tokens.clone(), streams=self._examples(samples), samples=samples, task=self.task)
        positions = torch.arange(self.length).expand(len(samples), -1).contiguous()
        weights = {"next_token": torch.ones(tokens.shape)}
        return Batch(tokens, positions, torch.ones_like(tokens), tokens.clone(), weights, samples=samples, task=self.task)

    def _examples(self, samples: Tensor) -> dict[str, Tensor]:
        assert self.adapter is not None
        draw = samples[:, None] * self.per_row + torch.arange(self.per_row)
        raw = torch.zeros(*draw.shape, *self.adapter.shape)
        captions = {"caption": torch.zeros(*draw.shape, self.words, dtype=torch.int64), "begin": torch.zeros_like(samples)} if self.words else {}
        return {self.adapter.modality: raw, "draw": draw, "example": draw, **captions}


def _feed(plan: Plan, number: int, task: Task, objective: Objective) -> Feed:
    own = objective.objective if isinstance(objective, _Watched) else objective
    rows = _Rows(task.name, plan.length)
    if isinstance(own, FromExamples):
        fit = feeds.per_row(own, plan.length, f"{plan.work.name}.task[{number}]")
        rows = _Rows(task.name, plan.length, own.adapter, fit, own.words)
    return Feed(rows, task.share, objective.unit, task.start, task.stop, lambda batch: objective.prepare(batch, 0))


def _kinds(source: Source, rows: int) -> list[tuple[Batch, float]]:
    """The kinds of micro-batches of a step, and how many it has of each on the average of the first ones."""
    found: dict[tuple[str, int], Batch] = {}
    counts: Counter[tuple[str, int]] = Counter()
    start, steps = Progress(), 0
    wanted = {task for task, feed in source.feeds.items() if feed.on(start)} if source.join is None else {MIXED}
    while not steps or (steps < STEPS and {task for task, _ in found} < wanted):
        for batch in source.next(start, rows):
            kind = batch.task, batch.rows
            found.setdefault(kind, batch if batch.rows else batch.blank())
            counts[kind] += 1
        steps += 1
    return [(batch, counts[kind] / steps) for kind, batch in found.items()]
