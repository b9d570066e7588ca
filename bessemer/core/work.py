"""What a stage is handed beside its artifacts: where to write, the seed, and how to say how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _silent(done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
    return None


class Stopped(Exception):
    """A stage stopped where it can be continued, because it was asked to; the same command resumes it."""


@dataclass
class Work:
    """The surroundings of one stage.

    Attributes:
        out: an existing folder the stage writes its artifact's files into. It may hold what an interrupted run of the
            same stage with the same options left, so long stages continue from it; it becomes the artifact only when
            the stage returns.
        seed: the recipe's seed.
        name: the stage's name in the recipe.
        smoke: do everything at its smallest.
        info: what the stage wants in its manifest; filled while it works.
        home: the run's folder, where metrics and the report go.
        recipe: the whole recipe, every default written out.
        stop_asked: whether someone wants the run to stop; stages read `stopping` instead.
    """

    out: Path
    seed: int = 0
    name: str = ""
    smoke: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    home: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    stop_asked: Callable[[], bool] = lambda: False
    on_progress: Callable[[float, float | None, str, dict[str, Any]], None] = _silent
    on_note: Callable[[str], None] = lambda text: None
    _minds_stopping: bool = False

    @property
    def stopping(self) -> bool:
        """Whether to stop: then save what is worth continuing from and `raise Stopped`.

        A stage that never asks is stopped for it, in its next call of `progress`.
        """
        self._minds_stopping = True
        return self.stop_asked()

    def progress(self, done: float, total: float | None, unit: str, **figures: Any) -> None:
        """Says how far the stage is: `done` of `total` (None if unknown) in `unit`, with figures worth seeing."""
        if self.stop_asked() and not self._minds_stopping:
            raise Stopped  # a stage may be killed anywhere, so stopping here is safe for one that has nothing to save first
        self.on_progress(done, total, unit, figures)

    def note(self, text: str) -> None:
        """A line for the person watching, and for the log."""
        self.on_note(text)
