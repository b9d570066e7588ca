"""Measures of the model while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice, Kind

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Evaluate:
    """Runs evaluation tasks at equal intervals over the run, and at its end.

    Args:
        times: how often over the whole run.
        tasks: what is measured; by default bits per byte of held-out documents, by domain.

    Raises:
        RecipeError: documents are to be measured and there are none.
    """

    def __init__(self, run: Run, *, times: int = 10, tasks: list[Annotated[Choice, Kind("evaluate/tasks")]] = ["bits_per_byte"]) -> None:  # type: ignore[list-item]
        if any(task.name == "bits_per_byte" for task in tasks):
            _check_documents(run)
        self.run, self.times, self.tasks = run, 1 if run.work.smoke else times, tasks

    def due(self, report: Report) -> bool:
        now = report.progress.fraction
        return report.progress.done or self._passed(now) > self._passed(now - report.progress.stride)

    def _passed(self, fraction: float) -> int:
        return int(fraction * self.times + 1e-9)

    def __call__(self, report: Report) -> None:
        self.run.evaluate(self.tasks)

    def close(self) -> None:
        return


def _check_documents(run: Run) -> None:
    problem = "bits_per_byte reads held-out documents, and "
    if run.store is None:
        mend = 'measure something else: hooks = [{ name = "evaluate", tasks = ["rank_me"] }, "save"]'
        raise RecipeError(problem + "there is no token store", key="hooks.evaluate.tasks", mend=mend)
    if not run.store.held_out.any():
        mend = 'collect more documents, raise tokenize.held_out, or measure nothing: hooks = ["save"]'
        raise RecipeError(problem + "the tokens hold out none", key="hooks.evaluate.tasks", mend=mend)
