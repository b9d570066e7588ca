"""The page that shows the run."""

from __future__ import annotations

from bessemer.core.artifact import Artifact
from bessemer.core.errors import RecipeError
from bessemer.core.work import Work
from bessemer.run.report import write


class ReportPage(Artifact):
    """`report.html`, which needs nothing beside it, and its pictures as PNG files."""

    kind = "report"


def report(work: Work, made: list[Artifact]) -> ReportPage:  # type: ignore[return]  # the runner opens what was written
    """Writes one self-contained page with curves, samples, counts, the recipe and versions.

    Raises:
        RecipeError: it is used outside a run.
    """
    if work.home is None:
        raise RecipeError("a report is made of a run's folder, and there is none")
    write(work.home, work.out)
    work.info["stages"] = len(made)
