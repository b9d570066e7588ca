"""No change over training, after an optional warm-up."""

from bessemer.core.progress import Progress
from bessemer.core.ranges import NonNegative
from bessemer.schedules._shapes import warm


def constant(progress: Progress, *, warmup: NonNegative = 0.0) -> float:
    """One, after a linear warm-up over the first `warmup` (a share of the run, or a number of steps from 1 on)."""
    return warm(progress, warmup)
