"""Whether tasks pull the same way."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bessemer.core import device
from bessemer.core.errors import RecipeError
from bessemer.train.balance._gradient import Gradient, shared
from bessemer.train.balanced import gradients
from bessemer.train.engine import Engine

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Conflict:
    """Writes, for each task, its loss, its share of compute, its gradient's length and the cosines to the others' on the weights they share.

    A task without a row in the step's batch, as happens where batches are small, has no gradient: it is named as absent.
    Each time it takes every task's gradient of the step's batches once more, so it costs about a step.

    Args:
        times: how often over the whole run.

    Raises:
        RecipeError: micro-batches are mixed, or pass through stages of a pipeline.
    """

    def __init__(self, run: Run, *, times: int = 5) -> None:
        if run.world.count("pipe") > 1 or "mixed" in run.engine.objectives:
            problem = "each task's own gradient is wanted, with all layers at hand and micro-batches of one task each"
            raise RecipeError(problem, key="hooks.conflict", mend="leave the hook out, or set mixed = false and mesh.pipe = 1")
        self.run, self.times = run, 1 if run.work.smoke else times

    def due(self, report: Report) -> bool:
        now = report.progress.fraction
        return report.progress.done or int(now * self.times + 1e-9) > int((now - report.progress.stride) * self.times + 1e-9)

    def __call__(self, report: Report) -> None:
        spans: list[float] = []

        def timed(batches: Any) -> Any:
            start = time.perf_counter()
            result = Engine.forward_backward(self.run.engine, batches)
            device.synchronise()
            spans.append(time.perf_counter() - start)
            return result

        found, _ = gradients(timed, self.run.engine.layout, report.batches)
        self.run.engine.spent()  # looking on is no part of the training's operations
        self.run.optimizers.zero_grad()
        names = shared(found)
        tasks = [each.task for each in found]
        line: dict[str, Any] = {
            "cosine": {a.task: {b.task: round(cosine(a, b, names), 4) for b in found} for a in found},
            "loss": {each.task: each.loss for each in found},
            "gradient_norm": {each.task: each.norm() for each in found},
            "absent": [task for task in self.run.engine.objectives if task not in tasks],
            "compute": {task: round(span / sum(spans), 4) for task, span in zip(tasks, spans, strict=True)},
        }
        self.run.metrics.write({"step": report.progress.step, "conflict": line, "time": {"conflict": sum(spans)}})
        if len(self.run.engine.objectives) > 1:
            self.run.work.note(table(line))

    def close(self) -> None:
        return


def cosine(a: Gradient, b: Gradient, names: set[str]) -> float:
    """The cosine of two gradients on the parameters named."""

    def only(each: Gradient) -> Gradient:
        return replace(each, parts=[p if n in names else None for n, p in zip(each.names, each.parts, strict=True)])

    first, second = only(a), only(b)
    return first.dot(second) / max(first.norm() * second.norm(), 1e-30)


def table(line: dict[str, Any]) -> str:
    """Each task's figures and the matrix of cosines, for people."""
    head, rows = cells(line)
    wide = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    return "\n".join(
        [
            "tasks and the cosines between their gradients",
            *("  ".join(f"{cell:>{width}}" for cell, width in zip(row, wide, strict=True)) for row in [head, *rows]),
            *absent(line),
        ]
    )


def absent(line: dict[str, Any]) -> list[str]:
    """A sentence that names the tasks the table leaves out, and why; none where it leaves out none."""
    names = line.get("absent")
    return [f"without {', '.join(names)}: no row in this step's batch"] if names else []


def cells(line: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and a row for each task, of a line that the hook wrote."""
    names = list(line["cosine"])
    rows = [
        [
            a,
            f"{line['loss'][a]:.3f}",
            f"{100 * line['compute'][a]:.0f}%",
            f"{line['gradient_norm'][a]:.3f}",
            *(f"{line['cosine'][a][b]:.2f}" for b in names),
        ]
        for a in names
    ]
    return ["task", "loss", "compute", "gradient", *names], rows
