"""A schedule without an end, for training that goes on."""

import math

from bessemer.core.progress import Progress
from bessemer.core.ranges import NonNegative, Positive, Whole
from bessemer.schedules._shapes import warm


def infinite(
    progress: Progress,
    *,
    warmup: Whole = 100,
    cooldown: Whole = 1000,
    plateau: Positive = 0.5,
    anneal_from: Whole | None = None,
    anneal: Whole = 500,
    floor: NonNegative = 0.0,
) -> float:
    """Warm-up, cosine cool-down to a plateau held for ever, and an anneal when asked for (Ibrahim et al. 2024).

    Every span is in steps, so the run's length changes nothing before the anneal.

    Args:
        warmup: steps of linear rise.
        cooldown: steps from the top to the plateau.
        plateau: the factor held between.
        anneal_from: the step at which the final, exponential anneal begins; None for never.
        anneal: steps of the anneal.
        floor: where the anneal ends.
    """
    step = progress.step
    into = min(1.0, max(0, step - warmup) / max(1, cooldown))
    value = warm(progress, warmup) if step < warmup else plateau + (1.0 - plateau) * 0.5 * (1.0 + math.cos(math.pi * into))
    if anneal_from is not None and step >= anneal_from:
        low = max(floor, 1e-3 * plateau)
        value *= (low / plateau) ** min(1.0, (step - anneal_from) / max(1, anneal))
    return value
