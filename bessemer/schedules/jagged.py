"""A schedule that rises again after every restart."""

from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, NonNegative, Whole
from bessemer.schedules.cosine import cosine


def jagged(progress: Progress, *, every: Count = 1000, rise: Whole = 50, warmup: NonNegative = 0.02, floor: NonNegative = 0.1) -> float:
    """Half a cosine that falls to nearly nothing every so many steps and rises again at once (Lialin et al. 2023, "ReLoRA").

    For methods that begin anew while training goes on: relora's restarts, refactorize's reset momentum.

    Args:
        every: steps between restarts, as the method's own.
        rise: steps of each rise.
        warmup: of the beginning: share of the run, or a number of steps from 1 on.
        floor: the factor at the end.
    """
    whole = cosine(progress, warmup=warmup, floor=floor)
    since = progress.step % every
    return whole if progress.step < every else whole * min(1.0, (since + 1) / max(1, rise))
