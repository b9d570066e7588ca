"""A measured value and how sure it is: percentile bootstrap over documents (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy

from bessemer.core import rng

RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval.

    Attributes:
        value: what was measured.
        low, high: ends of the interval; equal to the value where there is nothing to resample.
        count: documents or examples it rests on.
        better: which way is better, "lower" or "higher".
    """

    value: float
    low: float
    high: float
    count: int
    better: str = "higher"

    def plain(self) -> dict[str, float | int | str]:
        return asdict(self)


def ratio(sums: Sequence[float], counts: Sequence[float], seed: int, name: str, *, scale: float = 1.0, better: str = "higher") -> Figure:
    """sum(sums) / sum(counts) * scale, with an interval from resampling the documents they belong to.

    Args:
        sums, counts: one entry for each document: nats and bytes, hits and ones.
        seed, name: the key of the resampling.
    """
    top, bottom = numpy.asarray(sums, dtype=numpy.float64), numpy.asarray(counts, dtype=numpy.float64)
    if not top.size or bottom.sum() <= 0:
        return Figure(float("nan"), float("nan"), float("nan"), int(top.size), better)
    value = float(top.sum() / bottom.sum() * scale)
    if top.size == 1:
        return Figure(value, value, value, 1, better)
    generator = rng.numpy_generator(seed, "bootstrap", name)
    drawn = numpy.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = generator.integers(0, top.size, top.size)
        below = bottom[chosen].sum()
        drawn[number] = top[chosen].sum() / below * scale if below > 0 else value
    low, high = numpy.quantile(drawn, (0.025, 0.975))
    return Figure(value, float(low), float(high), int(top.size), better)
