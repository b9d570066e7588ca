"""The order in which sources take turns: a fixed, periodic pattern, so any window holds each source's share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bessemer.core.errors import RecipeError

Array = np.ndarray[Any, Any]
PERIOD = 10_000
"""Samples after which the pattern repeats: shares given with four decimals are kept exactly."""


class Mixture:
    """position in the global order -> (source, index within that source), each in constant time.

    Shares are rounded to whole counts in a period of PERIOD samples by largest remainders, each share above zero
    getting at least one. Within a period the sources take turns as in Tijdeman's solution of the chairman assignment
    problem (Tijdeman 1980), which is the best there is: counted from the start, a source's count is never further from
    its share than 1 - 1/(2k - 2), k being the number of sources; so in any window it is off by less than 2, and by at
    most 1 with two sources.

    Attributes:
        counts: int64 [sources], samples of each source in a period.
        period: their sum.
    """

    def __init__(self, shares: Sequence[float], period: int = PERIOD) -> None:
        self.counts = quantise(shares, period)
        self.period = period
        self.turns = take_turns(self.counts)
        one_hot = self.turns[:, None] == np.arange(len(self.counts))
        self.ranks = (np.cumsum(one_hot, axis=0) - 1)[np.arange(period), self.turns]

    def at(self, position: Array) -> tuple[Array, Array]:
        """The source of each position and how many samples of that source came before it: two int64 arrays."""
        period, place = np.divmod(position, self.period)
        source = self.turns[place]
        return source, period * self.counts[source] + self.ranks[place]


def quantise(shares: Sequence[float], period: int) -> Array:
    """Whole counts that sum to `period`, each within 1 of its share of it, or 1 where the share is smaller still.

    Raises:
        RecipeError: there are more sources than places.
    """
    share = np.asarray(shares, dtype=np.float64)
    positive = share > 0
    if int(positive.sum()) > period:
        raise RecipeError(f"{int(positive.sum())} sources can't share {period} places", key="mix", mend="mix by domain, or leave small sources out")
    exact = share / share.sum() * period
    counts = np.maximum(np.floor(exact + 1e-9), positive).astype(np.int64)
    while counts.sum() > period:  # the least shares were raised to 1: the best served give way
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    order = np.argsort(-np.where(positive, exact - counts, -np.inf), kind="stable")
    counts[order[: period - int(counts.sum())]] += 1
    return counts


def take_turns(counts: Array) -> Array:
    """int64 [sum(counts)]: whose turn each place is (Tijdeman 1980), in whole numbers so that it is exact."""
    chosen = np.flatnonzero(counts)
    count, period = counts[chosen], int(counts.sum())
    k = max(2, len(chosen))
    # a source may take place n once n * share - taken reaches 1/(2k - 2); the one due earliest does
    taken = np.zeros(len(chosen), dtype=np.int64)
    turns = np.empty(period, dtype=np.int64)
    ripe, slack = period, period * (2 * k - 3)  # 1/(2k-2) and 1 - 1/(2k-2), times period * (2k - 2)
    for n in range(1, period + 1):
        lag = (n * count - taken * period) * (2 * k - 2)
        due = np.where(lag >= ripe, (slack - lag) / count, np.inf)
        turn = int(np.argmin(due))
        taken[turn] += 1
        turns[n - 1] = turn
    return chosen[turns]
