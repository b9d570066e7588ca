"""A number that grows by stairs, made for batch sizes."""

from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, NonNegative, Share


def ramp(progress: Progress, *, start: NonNegative = 0.25, span: Share = 0.3, stairs: Count = 3) -> float:
    """From `start` to 1 in equal stairs over the first `span` of the run (Smith et al. 2022, MT-NLG's batch-size ramp).

    Args:
        start: the factor at the beginning.
        span: the share of the run after which the factor is 1.
        stairs: how many levels there are below 1.
    """
    if progress.fraction >= span:
        return 1.0
    level = int(progress.fraction / span * stairs)
    return start + (1.0 - start) * level / stairs
