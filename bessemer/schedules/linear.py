"""Straight down."""

from bessemer.core.progress import Progress
from bessemer.core.ranges import NonNegative
from bessemer.schedules._shapes import share, warm


def linear(progress: Progress, *, warmup: NonNegative = 0.02, floor: NonNegative = 0.0) -> float:
    """Linear decay from 1 after the warm-up to `floor` at the end (Bergsma et al. 2025, "Straight to zero").

    Args:
        warmup: share of the run, or a number of steps from 1 on.
        floor: the factor at the end.
    """
    start = share(progress, warmup)
    if progress.fraction < start:
        return warm(progress, warmup)
    return 1.0 - (1.0 - floor) * (progress.fraction - start) / max(1e-12, 1.0 - start)
