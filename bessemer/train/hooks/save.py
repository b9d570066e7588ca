"""Checkpoints at intervals."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Save:
    """Saves a checkpoint in the background every so many steps or seconds, and at the end.

    Args:
        every: steps between two checkpoints; None for none by steps.
        seconds: at least one checkpoint in so many seconds of wall time; None for none by time.
    """

    def __init__(self, run: Run, *, every: int | None = None, seconds: float | None = 60.0) -> None:
        self.run, self.every, self.seconds = run, every, seconds
        self.last = self._now()

    def _now(self) -> float:
        """The first rank's clock: all must save at the same steps."""
        return self.run.world.agree(time.monotonic()) if self.seconds is not None else 0.0

    def due(self, report: Report) -> bool:
        by_steps = self.every is not None and report.progress.step % self.every == 0
        by_time = self.seconds is not None and self._now() - self.last >= self.seconds
        return by_steps or by_time or report.progress.done

    def __call__(self, report: Report) -> None:
        self.run.save()
        self.last = self._now()

    def close(self) -> None:
        return
