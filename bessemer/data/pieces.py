"""A mixture that changes at recorded samples: fixed in between, so the order stays a function of what is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from bessemer.core.errors import ArtifactError
from bessemer.data.mixture import PERIOD, Array, Mixture

LATER = 1000
"""The period of the pieces after the first: shares that were measured have no fourth decimal worth keeping."""


class Pieces:
    """position in the global order -> (source, index within that source), where the shares may change at given positions.

    Each piece is a `Mixture` of its own from its first position on, and counts its sources' samples on from where the
    piece before left them, so no sample of a source is left out or comes twice at a change.

    Attributes:
        firsts: the position each piece begins at, ascending, the first of them 0.
        shares: each piece's shares.
        before: int64 [sources] for each piece, samples of each source before it.
    """

    def __init__(self, shares: list[float]) -> None:
        self.firsts, self.shares = [0], [list(shares)]
        self.before: list[Array] = [np.zeros(len(shares), dtype=np.int64)]
        self._mixtures = {0: Mixture(shares, PERIOD)}

    def then(self, position: int, shares: list[float]) -> Pieces:
        """The same up to `position` and other shares from there on; later pieces, if there are any, are dropped."""
        made = Pieces.__new__(Pieces)
        kept = int(np.searchsorted(self.firsts, position, side="left"))
        made.firsts, made.shares, made.before = self.firsts[:kept], self.shares[:kept], self.before[:kept]
        made._mixtures = {number: mixture for number, mixture in self._mixtures.items() if number < kept}
        before = self.counts(position)
        made.firsts, made.shares, made.before = [*made.firsts, position], [*made.shares, list(shares)], [*made.before, before]
        return made

    def counts(self, position: int) -> Array:
        """int64 [sources]: how many of the first `position` samples are of each source."""
        number = max(0, int(np.searchsorted(self.firsts, position, side="right")) - 1)
        mixture, places = self._mixture(number), position - self.firsts[number]
        period, rest = divmod(places, mixture.period)
        return self.before[number] + period * mixture.counts + np.bincount(mixture.turns[:rest], minlength=len(mixture.counts))

    def at(self, position: Array) -> tuple[Array, Array]:
        """The source of each position and how many samples of that source came before it: two int64 arrays."""
        if len(self.firsts) == 1:
            return self._mixture(0).at(position)
        numbers = np.searchsorted(self.firsts, position, side="right") - 1
        source, index = np.empty_like(position), np.empty_like(position)
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            source[mine], within = self._mixture(number).at(position[mine] - self.firsts[number])
            index[mine] = within + self.before[number][source[mine]]
        return source, index

    def state(self) -> list[dict[str, Any]]:
        """The pieces, as JSON can hold them."""
        return [{"first": f, "shares": s, "before": b.tolist()} for f, s, b in zip(self.firsts, self.shares, self.before, strict=True)]

    @classmethod
    def restored(cls, state: list[dict[str, Any]], sources: int) -> Pieces:
        """The pieces a checkpoint recorded.

        Raises:
            ArtifactError: they are of another number of sources.
        """
        if not state or any(len(piece["shares"]) != sources for piece in state):
            raise ArtifactError(f"the checkpoint mixes {len(state[0]['shares']) if state else 0} sources, and there are {sources} here", key="mix")
        made = cls(state[0]["shares"])
        made.firsts, made.shares = [int(piece["first"]) for piece in state], [piece["shares"] for piece in state]
        made.before = [np.array(piece["before"], dtype=np.int64) for piece in state]
        return made

    def _mixture(self, number: int) -> Mixture:
        if number not in self._mixtures:
            self._mixtures[number] = Mixture(self.shares[number], LATER if number else PERIOD)
        return self._mixtures[number]
