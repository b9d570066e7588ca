"""Tasks of EleutherAI's evaluation harness."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bessemer.core.errors import BessemerError, RecipeError, neighbours
from bessemer.evaluate.figure import Figure
from bessemer.evaluate.subject import Subject


def harness(
    subject: Subject,
    *,
    tasks: list[str],
    folder: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    rows: int = 16,
    max_tokens: int = 256,
) -> dict[str, Figure]:
    """Tasks of lm-eval (Gao et al. 2021, "A framework for few-shot language model evaluation"), run by the harness itself.

    Figures are named TASK/METRIC; intervals are 1.96 of the harness's standard errors to either side.

    Args:
        tasks: names of its tasks, or of those in `folder`.
        folder: YAML definitions of further tasks; then those shipped with the harness are left aside unless named tasks need
            them.
        shots: examples shown before each question; the task's own number by default.
        limit: take only so many documents of each task.
        rows: requests scored at once.
        max_tokens: the most tokens written where a task sets no limit.

    Raises:
        BessemerError: lm-eval is not installed, a task can't be loaded or asks for what there is not.
        RecipeError: there is no such task.
    """
    if find_spec("lm_eval") is None:
        raise BessemerError("the harness is not installed", key="harness", mend="pip install 'bessemer[harness]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval import simple_evaluate

    from bessemer.evaluate.harness_model import harness_model

    manager = _manager(tasks, folder)
    model = harness_model(subject, rows=rows, max_tokens=max_tokens)
    most = subject.few(limit, 4)
    try:
        found = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=shots, limit=most, task_manager=manager, log_samples=False, bootstrap_iters=1000
        )
    except (FileNotFoundError, KeyError, ValueError, ConnectionError) as error:
        raise BessemerError(f"the harness could not run {', '.join(tasks)}: {error}", file=folder, key="harness") from error
    return _figures(found or {})


def _manager(tasks: list[str], folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise RecipeError("names no task", key="harness.tasks", mend='for example tasks = ["lambada_openai"]')
    if folder is None:
        manager = TaskManager()
    else:
        if not Path(folder).is_dir():
            raise RecipeError("there is no such folder", file=folder, key="harness.folder")
        manager = TaskManager(include_path=folder, include_defaults=False)
        if any(name not in manager.all_tasks for name in tasks):
            manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            raise RecipeError(f"the harness has no task '{name}'", file=folder, key="harness.tasks", mend=neighbours(name, manager.all_tasks))
    return manager


def _figures(found: dict[str, Any]) -> dict[str, Figure]:
    figures = {}
    for task, table in found.get("results", {}).items():
        count = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for entry, value in table.items():
            metric, comma, kept = entry.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = table.get(f"{metric}_stderr,{kept}")
            spread = 1.96 * error if isinstance(error, int | float) else 0.0
            name = f"{task}/{metric}" if kept == "none" else f"{task}/{metric}/{kept}"
            higher = found.get("higher_is_better", {}).get(task, {}).get(metric, True)
            figures[name] = Figure(value, value - spread, value + spread, count, "higher" if higher else "lower")
    return figures
