"""Warm-up, stable, decay."""

import math
from typing import Literal

from bessemer.core.progress import Progress
from bessemer.core.ranges import NonNegative
from bessemer.schedules._shapes import share, warm


def wsd(
    progress: Progress, *, warmup: NonNegative = 0.02, decay: NonNegative = 0.2, floor: NonNegative = 0.0, shape: Literal["linear", "sqrt"] = "linear"
) -> float:
    """Warm-up, a long plateau, then a decay over the last share (Hu et al. 2024, "MiniCPM"; Hägele et al. 2024).

    Args:
        warmup: share of the run, or a number of steps from 1 on.
        decay: share of the run, or a number of steps, spent decaying at the end.
        floor: the factor at the end.
        shape: `linear`, or `sqrt` for one minus the square root, which Hägele et al. found best.
    """
    falling = share(progress, decay)
    into = (progress.fraction - (1.0 - falling)) / max(1e-12, falling)
    if into <= 0.0:
        return warm(progress, warmup)
    fall = into if shape == "linear" else math.sqrt(into)
    return warm(progress, warmup) * (1.0 - (1.0 - floor) * fall)
