"""The results of an evaluation: figures by task, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice
from bessemer.evaluate.figure import Figure
from bessemer.evaluate.subject import Subject

FILE = "evaluation.json"


class Evaluation(Artifact):
    """`evaluation.json`: what was measured, on which model, and every figure with its interval."""

    kind = "evaluation"

    @property
    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """task's label -> figure's name -> value, low, high, count, better."""
        return files.read_json(self.folder / FILE)["figures"]


def measure(subject: Subject, tasks: Sequence[Choice]) -> dict[str, dict[str, Figure]]:
    """Runs tasks one after the other: label (or name) -> figures.

    Raises:
        RecipeError: there is no task, or two have one label.
    """
    if not tasks:
        raise RecipeError("there is nothing to measure", key="tasks", mend='for example tasks = ["bits_per_byte"]')
    found: dict[str, dict[str, Figure]] = {}
    for number, task in enumerate(tasks):
        label = str(task.tags.get("label") or task.name)
        if label in found:
            raise RecipeError(f"two tasks are called '{label}'", key=f"tasks[{number}].label", mend='give each a label of its own: label = "..."')
        found[label] = task(subject)
    return found
