"""A stage's work as plain values, so that another process can do it: which method, with which options, on which artifacts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.core.artifact import Artifact
from bessemer.core.mesh import Mesh
from bessemer.core.registry import Choice, as_plain, choose
from bessemer.core.work import Work

KIND = "run/stages"


def ranks_of(choice: Choice) -> int:
    """How many processes a stage wants: the product of its `mesh`, if it has that option.

    Raises:
        RecipeError: the mesh is illegal.
    """
    return Mesh.of(choice.options.get("mesh") or {}).ranks


def write(choice: Choice, work: Work, given: list[Any]) -> dict[str, Any]:
    """The order, as JSON can hold it.

    Args:
        given: the stage's artifacts as it takes them: each an artifact, a list of them, or None.
    """
    surroundings = {"out": str(work.out), "seed": work.seed, "name": work.name, "smoke": work.smoke, "recipe": work.recipe}
    surroundings["home"] = str(work.home) if work.home else None
    return {"do": {"name": choice.name, **as_plain(choice.options)}, "work": surroundings, "given": [_place(each) for each in given]}


def follow(order: dict[str, Any], **callbacks: Callable[..., Any]) -> dict[str, Any]:
    """Does what an order says, in this process, and returns what the stage wants in its manifest.

    Args:
        callbacks: of the `Work`: stop_asked, on_progress, on_note.
    """
    held: dict[str, Any] = order["work"] | {name: Path(order["work"][name]) for name in ("out", "home") if order["work"][name]} | callbacks
    work = Work(**held)
    choose(KIND, order["do"])(work, *(_opened(each) for each in order["given"]))
    return work.info


def _place(value: Any) -> Any:
    if isinstance(value, Artifact):
        return {"kind": f"{type(value).__module__}:{type(value).__qualname__}", "folder": str(value.folder)}
    return [_place(each) for each in value] if isinstance(value, list) else value


def _opened(value: Any) -> Any:
    """The artifact of a place; whoever wrote the order has verified it."""
    if isinstance(value, dict):
        module, _, name = value["kind"].partition(":")
        return getattr(importlib.import_module(module), name).open(value["folder"], verify=False)
    return [_opened(each) for each in value] if isinstance(value, list) else value
