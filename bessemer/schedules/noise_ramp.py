"""A batch that follows the measured noise of the gradient."""

import math

from bessemer.core.progress import Progress
from bessemer.core.ranges import Positive


def noise_ramp(progress: Progress, *, start: Positive = 0.125, most: Positive = 1.0, ratio: Positive = 1.0) -> float:
    """The largest power of two, as a factor of the whole batch, below the gradient noise scale (McCandlish et al. 2018).

    Needs `noise_scale` around the optimizers, which measures; until it has, the batch is whole.

    Args:
        start: the least factor.
        most: the largest.
        ratio: the batch as a multiple of the noise scale.
    """
    wanted = ratio * progress.noise_scale / progress.batch if progress.batch else 0.0
    if not (math.isfinite(wanted) and wanted > 0.0):
        return most
    return min(most, max(start, 2.0 ** math.floor(math.log2(wanted))))


noise_ramp.follows = "noise_scale"  # type: ignore[attr-defined]
