"""A measured value and how sure it is: percentile bootstrap over documents (Efron 1979)."""

from __future__ import annotations

from typing import Literal

import numpy
from numpy.typing import ArrayLike

from bessemer.core import rng

RESAMPLES = 1000
Better = Literal["lower", "higher"]


class Figure(float):
    """A value with its 95% interval; wherever a number is wanted it is one.

    Attributes:
        low, high: ends of the interval; equal to the value where there is nothing to resample.
        count: documents or examples it rests on.
        better: which way is better.
    """

    low: float
    high: float
    count: int
    better: Better

    def __new__(cls, value: float, low: float, high: float, count: int, better: Better = "higher") -> Figure:
        made = super().__new__(cls, value)
        made.low, made.high, made.count, made.better = float(low), float(high), int(count), better
        return made

    def plain(self) -> dict[str, float | int | str]:
        """As evaluation.json holds it."""
        return {"value": float(self), "low": self.low, "high": self.high, "count": self.count, "better": self.better}

    def __reduce__(self) -> tuple[type[Figure], tuple[float, float, float, int, Better]]:
        return Figure, (float(self), self.low, self.high, self.count, self.better)


def ratio(sums: ArrayLike, counts: ArrayLike, seed: int, name: str, *, better: Better = "higher") -> Figure:
    """sum(sums) / sum(counts), with an interval from resampling the documents they belong to.

    Args:
        sums, counts: one entry for each document: bits and bytes, hits and ones.
        seed, name: the key of the resampling.

    Raises:
        ValueError: there is nothing to divide by.
    """
    top, bottom = numpy.asarray(sums, dtype=numpy.float64), numpy.asarray(counts, dtype=numpy.float64)
    if not bottom.sum() > 0:
        raise ValueError(f"{name}: nothing was counted")
    value = float(top.sum() / bottom.sum())
    if top.size == 1 or not numpy.isfinite(value):
        return Figure(value, value, value, top.size, better)
    generator = rng.numpy_generator(seed, "bootstrap", name)
    drawn = numpy.empty(RESAMPLES)
    for number in range(RESAMPLES):
        chosen = generator.integers(0, top.size, top.size)
        below = bottom[chosen].sum()
        drawn[number] = top[chosen].sum() / below if below > 0 else value
    low, high = numpy.quantile(drawn, (0.025, 0.975))
    return Figure(value, low, high, top.size, better)
