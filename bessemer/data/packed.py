"""All groups' rows in one packing, and which row comes at each place of an epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bessemer.core import rng
from bessemer.core.registry import Choice
from bessemer.data.rows import Array, Rows


class Packed:
    """The rows of some groups of documents, and their order: another keyed one in every epoch of a group.

    Where a packing gives its rows levels, only rows of one level are exchanged, and the packing's own pattern of levels
    holds in every epoch.

    Args:
        lengths: int64 [documents], tokens of each document of the store.
        groups: name -> int64, the numbers of its documents.
        pack: a method of data/pack.
        length: tokens of a row.
        seed: keys the order of documents and rows.

    Attributes:
        rows: all groups' rows, one group after the other.
        counts: int64 [groups], rows of each.
        firsts: int64 [groups], where each begins.
        levelled: whether rows hold pieces of one size each.
    """

    def __init__(self, lengths: Array, groups: Mapping[str, Array], pack: Choice, length: int, seed: int) -> None:
        self.names, self.seed = list(groups), seed
        parts = [self._part(lengths, name, found, pack, length) for name, found in groups.items()]
        self.rows = Rows.join(parts)
        self.counts = np.array([part.count for part in parts], dtype=np.int64)
        self.firsts = np.cumsum(self.counts) - self.counts
        self._levels = [None if part.levels is None or part.turns is None else _Levels(part.levels, part.turns) for part in parts]
        self.levelled = any(levels is not None for levels in self._levels)

    def _part(self, lengths: Array, name: str, found: Array, pack: Choice, length: int) -> Rows:
        order = found[rng.permute(np.arange(len(found)), len(found), rng.key(self.seed, "documents", name))] if len(found) else found
        part = pack(lengths[order], length)
        return Rows(part.offsets, order[part.document], part.start, part.size, length, part.masked, part.levels, part.turns)

    def at(self, group: Array, index: Array) -> Array:
        """int64: the row that is the index-th of its group, counted over all epochs."""
        epoch, place = np.divmod(index, self.counts[group])
        row = np.empty_like(place)
        for number, turn in np.unique(np.stack([group, epoch]), axis=1).T.tolist():
            mine = (group == number) & (epoch == turn)
            key, levels = rng.key(self.seed, "rows", self.names[number], turn), self._levels[number]
            count = int(self.counts[number])
            row[mine] = self.firsts[number] + (rng.permute(place[mine], count, key) if levels is None else levels.at(place[mine], key))
        return row


class _Levels:
    """Rows shuffled within their levels only; `turns` says which level comes at each place."""

    def __init__(self, levels: Array, turns: Array) -> None:
        self.turns = turns
        self.members = {level: np.flatnonzero(levels == level) for level in np.unique(levels).tolist()}
        self.ranks = np.empty(len(turns), dtype=np.int64)
        for level in self.members:
            mine = turns == level
            self.ranks[mine] = np.arange(int(mine.sum()))

    def at(self, place: Array, key: int) -> Array:
        row, turns = np.empty_like(place), self.turns[place]
        for level, members in self.members.items():
            mine = turns == level
            if mine.any():
                row[mine] = members[rng.permute(self.ranks[place[mine]], len(members), rng.key(key, "level", level))]
        return row
