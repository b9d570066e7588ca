"""Pieces that schedules are made of."""

from bessemer.core.progress import Progress


def share(progress: Progress, span: float) -> float:
    """A span given as a share of the run (below 1) or in steps (from 1 on), as a share of the run."""
    if span < 1.0:
        return span
    if progress.step == 0 or progress.fraction == 0.0:
        return span / max(1, progress.steps) if progress.steps else 1.0
    return span * progress.fraction / progress.step


def warm(progress: Progress, warmup: float) -> float:
    """A linear rise from 1/n at the first of n warm-up steps to 1; a share of the run counts in the run's own unit."""
    if warmup <= 0.0:
        return 1.0
    if warmup >= 1.0:
        return min(1.0, (progress.step + 1) / warmup)
    return min(1.0, (progress.fraction + progress.stride) / warmup)
