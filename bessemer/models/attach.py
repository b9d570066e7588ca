"""What a recipe's tasks add to a model: adapters for inputs other than tokens, and the parameters that belong to a task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticCustomError
from torch import nn

from bessemer.core.errors import ArtifactError, RecipeError
from bessemer.core.registry import Choice, as_plain, choose, find
from bessemer.models import transfer

ADAPTERS, OBJECTIVES = "models/adapters", "objectives"


def attach(model: Any, task: str, objective: Choice, adapter: Choice | None = None, seed: int = 0) -> Any:
    """The objective, made, with its adapter and its parameters as parts of the model: `adapters.NAME.*` and `tasks.TASK.*`.

    What the model has already of the same options is kept as it is: an adapter that several tasks share, a task that an
    earlier stage trained. What is new gets initial values keyed by seed and name.

    Args:
        model: of a family, with `options`, `vocabulary`, `adapters`, `tasks` and `attached`.

    Raises:
        RecipeError: two tasks want one adapter with different options.
    """
    made = objective()
    notes = model.attached
    if adapter is not None:
        made.adapter = _adapter(model, task, adapter, seed)
    table = as_plain(objective)
    known = notes["tasks"].get(task)
    if known is None or known["objective"] != table or task not in model.tasks:
        parts = nn.ModuleDict(made.modules(model.options["width"], model.vocabulary))
        model.tasks.pop(task) if task in model.tasks else None
        if parts:
            _settle(model, model.tasks, task, parts, f"tasks.{task}.", seed)
    notes["tasks"][task] = {"objective": table, "adapter": adapter.name if adapter else None}
    if task in model.tasks:
        made.parts = model.tasks[task]
    return made


def objective_of(model: Any, task: str) -> Any:
    """The objective of a task that was attached to the model, with its adapter and its parameters.

    Raises:
        RecipeError: the model has no such task, or its objective can't be had here.
    """
    notes = model.attached["tasks"].get(task)
    if notes is None:
        known = ", ".join(model.attached["tasks"]) or "none"
        raise RecipeError(f"the model was trained on no task '{task}'", key="task", mend=f"its tasks are: {known}")
    try:
        made = choose(OBJECTIVES, notes["objective"])()
    except PydanticCustomError as error:
        raise RecipeError(f"the task '{task}': {error.message()}", key="task", mend=(error.context or {}).get("mend")) from None
    made.adapter = model.adapters[notes["adapter"]] if notes["adapter"] else None
    if task in model.tasks:
        made.parts = model.tasks[task]
    return made


def tasks_with(model: Any, *objectives: str) -> list[str]:
    """The model's tasks whose objective is one of these, by name."""
    return [task for task, notes in model.attached["tasks"].items() if notes["objective"]["name"] in objectives]


def again(model: Any, notes: dict[str, Any], file: Path, stored: Iterable[str]) -> None:
    """Attaches to a skeleton what its card says, without values.

    An objective from outside the package that can't be imported here is passed over if the model has no parameters of its own
    for the task: nothing but further training on that task needs it.

    Args:
        stored: the names of the tensors the model has.

    Raises:
        ArtifactError: the card names a method or option there is none of.
    """
    own = {name.split(".")[1] for name in stored if name.startswith("tasks.")}
    try:
        adapters = {name: choose(ADAPTERS, table) for name, table in notes["adapters"].items()}
        for task, entry in notes["tasks"].items():
            if task not in own and _is_elsewhere(entry["objective"]["name"]):
                model.attached["tasks"][task] = entry
                continue
            with torch.device("meta"):
                attach(model, task, choose(OBJECTIVES, entry["objective"]), adapters.get(entry["adapter"]))
        for name, adapter in adapters.items():
            with torch.device("meta"):
                _adapter(model, name, adapter, 0)
    except (PydanticCustomError, KeyError, AttributeError, TypeError) as error:
        mend = (error.context or {}).get("mend") if isinstance(error, PydanticCustomError) else None
        raise ArtifactError(f"what is attached to the model can't be built again: {error}", file=file, key="attached", mend=mend) from None


def _is_elsewhere(objective: str) -> bool:
    """Whether an objective is a user's own and can't be imported from here."""
    try:
        find(OBJECTIVES, objective)
    except RecipeError:
        return "." in objective
    return False


def _adapter(model: Any, task: str, adapter: Choice, seed: int) -> Any:
    table = as_plain(adapter)
    known = model.attached["adapters"].setdefault(adapter.name, table)
    if known != table:
        problem = f"the model's adapter '{adapter.name}' has other options: {known}"
        raise RecipeError(problem, key=f"task.{task}.adapter", mend="tasks of one model share each adapter: give them the same options")
    if adapter.name not in model.adapters:
        made = adapter(model.options["width"])
        _settle(model, model.adapters, adapter.name, made, f"adapters.{adapter.name}.", seed)
    return model.adapters[adapter.name]


def _settle(model: Any, place: nn.ModuleDict, name: str, made: nn.Module, prefix: str, seed: int) -> None:
    place[name] = made
    first = next(made.parameters(), None)
    if first is not None and not first.is_meta:
        transfer.initialise(model, seed, prefix)
        made.to(next(model.parameters()).device)
