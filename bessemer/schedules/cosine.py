"""Half a cosine wave."""

import math

from bessemer.core.progress import Progress
from bessemer.core.ranges import NonNegative
from bessemer.schedules._shapes import share, warm


def cosine(progress: Progress, *, warmup: NonNegative = 0.02, floor: NonNegative = 0.1) -> float:
    """Half a cosine from 1 after the warm-up to `floor` at the end (Loshchilov and Hutter 2017).

    Args:
        warmup: share of the run, or a number of steps from 1 on.
        floor: the factor at the end.
    """
    start = share(progress, warmup)
    if progress.fraction < start:
        return warm(progress, warmup)
    angle = math.pi * (progress.fraction - start) / max(1e-12, 1.0 - start)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(angle))
