"""From a recipe's tasks to what the engine and the loop need of them: objectives with their parts in the model, and supplies of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.core.collectives import Along
from bessemer.core.errors import RecipeError, neighbours
from bessemer.core.registry import Choice
from bessemer.core.work import Work
from bessemer.data.example_loader import ExampleLoader
from bessemer.data.example_store import Examples
from bessemer.data.loader import Loader
from bessemer.data.sparse_logits import SparseLogits
from bessemer.data.special import Words
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.models.attach import attach
from bessemer.objectives._examples import FromExamples
from bessemer.objectives._objective import Objective
from bessemer.train.mixed import Mixed, trunk_streams
from bessemer.train.source import Feed
from bessemer.train.task import Task

SMOKE_UNIT = 2
"""Rows of a group in a smoke run, for each rank."""


def objectives(work: Work, model: Any, tasks: list[Task], tokenizer: Tokenizer, ranks: Along = Along()) -> dict[str, tuple[Objective, float]]:
    """Task name -> its objective, attached to the model, and its weight.

    Args:
        ranks: those that share the rows of a micro-batch.

    Raises:
        RecipeError: two tasks have one name, an option contradicts another, or the tokenizer lacks a special token.
    """
    found: dict[str, tuple[Objective, float]] = {}
    for number, task in enumerate(tasks):
        if task.name in found:
            raise RecipeError(f"two tasks are called '{task.name}'", key=f"{work.name}.task[{number}].name", mend="give each a name of its own")
        found[task.name] = (objective(work, model, number, task, tokenizer, ranks), task.weight)
    known = {adapter.stream for adapter in model.adapters.values()}
    for name in getattr(model, "options", {}).get("modalities", []):
        if name not in known:
            problem = f"no task's adapter makes '{name}', which the model has feed-forward parts for"
            raise RecipeError(problem, key=f"{work.name}.model.modalities", mend=neighbours(name, known))
    if not any(task.start == 0.0 for task in tasks) or not any(task.stop == 1.0 for task in tasks):
        raise RecipeError("a part of the run has no task at all", key=f"{work.name}.task", mend="let one task start at 0, and one stop at 1")
    return found


def objective(work: Work, model: Any, number: int, task: Task, tokenizer: Words, ranks: Along = Along()) -> Objective:
    """The objective of one task, the recipe's `number`th, attached to the model; errors as those of `objectives`."""
    where = f"{work.name}.task[{number}]"
    if not task.name.isidentifier():
        raise RecipeError(f"a task's name is of letters, digits and _, and '{task.name}' is given", key=f"{where}.name")
    if task.start >= task.stop:
        raise RecipeError(f"it starts at {task.start} and stops at {task.stop}", key=f"{where}.start", mend="start before stop")
    if issubclass(_class_of(task), FromExamples) and task.adapter is None:
        mend = 'say how they enter: adapter = { name = "patches", size = 8 }'
        raise RecipeError(f"{task.objective.name} learns from examples, and the task has no adapter", key=f"{where}.adapter", mend=mend)
    made: Objective = attach(model, task.name, task.objective, task.adapter, work.seed)
    if work.smoke:
        made.unit = min(made.unit, SMOKE_UNIT * ranks.size)
    if made.unit > 1 and made.unit % ranks.size:
        problem = f"its groups of {made.unit} rows can't be shared by {ranks.size} ranks"
        raise RecipeError(problem, key=f"{where}.objective", mend=f"make them a multiple of {ranks.size}")
    made.ranks = ranks
    made.read(tokenizer)
    return made


def feeds(
    work: Work,
    tasks: list[Task],
    made: Mapping[str, tuple[Objective, float]],
    store: Tokens | None,
    examples: list[Examples],
    tokenizer: Tokenizer,
    length: int,
    rows: int,
    logits: SparseLogits | None = None,
    fold: bool = True,
) -> dict[str, Feed]:
    """Task name -> where its rows come from.

    Args:
        length: columns of a row.
        rows: rows of a global batch.
        logits: a teacher's, for the objectives that learn from them.
        fold: whether micro-batches may have rows of different lengths.

    Raises:
        BessemerError: a task's data is missing, or doesn't have what its objective reads.
    """
    found = {}
    for number, task in enumerate(tasks):
        objective = made[task.name][0]
        where = f"{work.name}.task[{number}]"
        if objective.unit > rows:
            problem = f"its groups are of {objective.unit} rows, and a batch has {rows}"
            raise RecipeError(problem, key=f"{where}.objective.group", mend="make the groups smaller or the batch larger")
        if isinstance(objective, FromExamples):
            loader: Any = _examples(task, objective, _named(task, examples, where), tokenizer, length, work.seed, where)
        elif store is None:
            problem = f"{task.objective.name} learns from a token store, and there is none"
            raise RecipeError(problem, key=where, mend='add a stage before: do = "tokenize"')
        else:
            loader = _text(task, store, tokenizer, length, work.seed, logits if objective.stored else None)
        prepare: Callable[[Batch], Batch] = partial(_prepared, objective, rng.key(work.seed, "prepare", task.name))
        found[task.name] = Feed(loader, task.share, objective.unit, task.start, task.stop, prepare, fold and getattr(loader, "levelled", False))
    return found


def mixed(work: Work, model: Any, made: Mapping[str, tuple[Objective, float]], balance: Choice | None) -> Mixed:
    """The objectives as one, for micro-batches of several tasks.

    Raises:
        RecipeError: the tasks' gradients are to be balanced, which needs them apart.
    """
    if balance is not None:
        problem = f"{balance.name} needs each task's own gradient, and mixed micro-batches give only their sum"
        raise RecipeError(problem, key=f"{work.name}.mixed", mend="mixed = false")
    return Mixed(made, trunk_streams([adapter.stream for adapter in model.adapters.values()]))


def _prepared(objective: Objective, seed: int, batch: Batch) -> Batch:
    return objective.prepare(batch, seed)


def _class_of(task: Task) -> type:
    target = task.objective.target
    return target if isinstance(target, type) else type(target)


def _text(task: Task, store: Tokens, tokenizer: Tokenizer, length: int, seed: int, logits: SparseLogits | None) -> Loader:
    only = None if task.domains == "auto" else task.domains
    prefixes = task.condition(tokenizer, store, seed) if task.condition else None
    mix = task.mix or "proportional"
    return Loader(store, length=length, pack=task.pack, mix=mix, seed=seed, only=only, task=task.name, prefixes=prefixes, logits=logits)


def _examples(task: Task, objective: FromExamples, store: Examples, tokenizer: Tokenizer, length: int, seed: int, where: str) -> ExampleLoader:
    adapter = objective.adapter
    shape = store.shapes.get(adapter.modality)
    if shape is None:
        problem = f"the adapter '{adapter.stream}' reads a {adapter.modality}, and the examples have {', '.join(store.shapes) or 'none'}"
        raise RecipeError(problem, key=f"{where}.adapter", mend="choose the adapter of a modality they have")
    if shape != adapter.shape:
        problem = f"the adapter reads {adapter.modality}s of shape {list(adapter.shape)}, and the examples' have {list(shape)}"
        raise RecipeError(problem, key=f"{where}.adapter", mend="give the adapter, or collect_examples, the other's size")
    return ExampleLoader(
        store,
        tokenizer,
        modality=adapter.modality,
        per_row=per_row(objective, length, where),
        length=length,
        words=objective.words,
        seed=seed,
        task=task.name,
    )


def per_row(objective: FromExamples, length: int, where: str) -> int:
    """How many examples a row of `length` columns holds.

    Raises:
        RecipeError: not one.
    """
    if objective.columns > length:
        problem = f"an example takes {objective.columns} columns, and rows have {length}"
        raise RecipeError(problem, key=f"{where}.objective", mend=f"make rows of at least {objective.columns}: length = {objective.columns}")
    return length // objective.columns


def _named(task: Task, examples: list[Examples], where: str) -> Examples:
    """The example store a task reads, by the stage that made it."""
    by_name = {store.folder.name.lstrip("."): store for store in examples}
    if not by_name:
        raise RecipeError(
            f"{task.objective.name} learns from examples, and there are none", key=where, mend='add a stage before: do = "collect_examples"'
        )
    if task.examples is None:
        if len(by_name) > 1:
            raise RecipeError("there are several example stores", key=f"{where}.examples", mend=f"name one: {', '.join(by_name)}")
        return next(iter(by_name.values()))
    if task.examples not in by_name:
        raise RecipeError(f"no stage '{task.examples}' makes examples", key=f"{where}.examples", mend=neighbours(task.examples, by_name))
    return by_name[task.examples]
