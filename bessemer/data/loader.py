"""The loader: a pure function from sample numbers to batches, so its whole state is one integer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic_core import PydanticCustomError

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import Choice, choose
from bessemer.data.layout import gather
from bessemer.data.mixture import Mixture
from bessemer.data.rows import Array, Rows
from bessemer.data.tokens import By, Split, Tokens

_BLOCK = 4096
"""Samples looked up at once."""


class Loader:
    """Packs a split into rows and says which rows any batch consists of.

    Sample n of the global order belongs to the group (domain or source) that `Mixture` gives it; it is the next row of
    that group's current epoch, and every epoch goes through the group's rows in another keyed order. Nothing depends on
    what was asked before, on how many rows are asked for at once, or on the number of ranks.

    In a row every token is a target once. A document's first token is predicted from `tokens.begin`, every other from
    the one before it: the model reads a document shifted by one, and the end token only as a target. A piece in the
    middle of a document begins with the token before it.

    Memory grows with the documents and not with their tokens, which stay on the disk: about 100 bytes a document (33 of
    them the store's index), and about 200 while the rows are made, so ten million documents take 1 GB, at first 2 GB.

    Args:
        tokens: the store.
        length: tokens of a row.
        pack: a method of data/pack: how documents become rows.
        mix: a method of data/mix: the groups' shares; None puts all documents into one group.
        by: what the groups are.
        only: leave out every group but these.
        seed: keys the order of documents and rows.
        split: "train" or "held_out".
        task: the name given to the batches.

    Attributes:
        names: the groups; `Batch.sources` numbers them.
        shares: name -> share of the samples, summing to one.
        rows_of: name -> rows in one epoch.
        epoch: rows of all groups together.
        padding: the share of places that hold no token, over all rows.

    Raises:
        DataError: there is less text than one row, or a group with a share has no document in this split.
        RecipeError: `length` is not above 0, or a weight is wrong.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        length: int,
        pack: Choice | str | dict[str, Any] = "best_fit",
        mix: Choice | str | dict[str, Any] | None = "proportional",
        by: By = "domain",
        only: list[str] | None = None,
        seed: int = 0,
        split: Split = "train",
        task: str = "text",
    ) -> None:
        self.tokens, self.length, self.seed, self.split, self.task = tokens, length, seed, split, task
        if length < 1:
            raise RecipeError(f"a row has at least one token, and {length} is given", key="length")
        groups = self._groups(mix is None, by, only)
        sizes = {name: int(tokens.lengths[found].sum()) for name, found in groups.items()}
        if sum(sizes.values()) < length:
            problem = f"a row has {length} tokens, and the whole {split} split has {sum(sizes.values())}"
            raise DataError(problem, file=tokens.folder, key="length", mend="shorten the rows or collect more text")
        self.shares = {"all": 1.0} if mix is None else choose_method("data/mix", mix)(sizes)
        self.names = list(self.shares)
        self._check_shares(sizes)
        self.mixture = Mixture(list(self.shares.values()))
        packing = choose_method("data/pack", pack)
        self._block = lru_cache(8)(lambda number: self.rows_at(np.arange(number * _BLOCK, (number + 1) * _BLOCK)))
        self._pack([groups[name] if self.shares[name] else groups[name][:0] for name in self.names], packing)

    def _groups(self, together: bool, by: By, only: list[str] | None) -> dict[str, Array]:
        known = self.tokens.domains if by == "domain" else self.tokens.sources
        groups = {name: self.tokens.documents(self.split, by, name) for name in (known if only is None else only)}
        return {"all": np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *groups.values()]))} if together else groups

    def _check_shares(self, sizes: dict[str, int]) -> None:
        for name, share in self.shares.items():
            if share and not sizes[name]:
                problem = f"'{name}' has a share of {share:.3g}, and no document in the {self.split} split"
                raise DataError(problem, file=self.tokens.folder, key=f"mix.weights.{name}", mend="leave it out, or collect more of it")

    def _pack(self, groups: list[Array], packing: Choice) -> None:
        parts = []
        for name, found in zip(self.names, groups, strict=True):
            order = found[rng.permute(np.arange(len(found)), len(found), rng.key(self.seed, "documents", name))] if len(found) else found
            part = packing(self.tokens.lengths[order], self.length)
            parts.append(Rows(part.offsets, order[part.document], part.start, part.size, self.length, part.masked))
        self.rows = Rows.join(parts)
        self._counts = np.array([part.count for part in parts], dtype=np.int64)
        self._firsts = np.cumsum(self._counts) - self._counts
        self.rows_of = {name: part.count for name, part in zip(self.names, parts, strict=True)}
        self.epoch, self.padding = self.rows.count, self.rows.padding

    def rows_at(self, sample: Array) -> tuple[Array, Array]:
        """Which row of `self.rows`, and which group, each sample of the global order is: two int64 arrays."""
        group, index = self.mixture.at(np.asarray(sample, dtype=np.int64))
        epoch, place = np.divmod(index, self._counts[group])
        row = np.empty_like(place)
        for key in np.unique(np.stack([group, epoch]), axis=1).T.tolist():
            mine = (group == key[0]) & (epoch == key[1])
            count = int(self._counts[key[0]])
            shuffled = rng.permute(place[mine], count, rng.key(self.seed, "rows", self.names[key[0]], key[1]))
            row[mine] = self._firsts[key[0]] + shuffled
        return row, group

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """Samples `start` to `start + rows` of the global order, or one rank's contiguous block of them.

        Args:
            start: the loader's state: how many samples came before.
            rows: rows of the global batch.
            rank, ranks: which block of the global batch; blocks differ by at most one row.
        """
        sample = np.arange(start + rows * rank // ranks, start + rows * (rank + 1) // ranks, dtype=np.int64)
        row, group = self._looked_up(sample)
        batch = gather(self.tokens, self.rows, row)
        batch.samples, batch.sources, batch.task = torch.from_numpy(sample), torch.from_numpy(group), self.task
        return batch

    def _looked_up(self, sample: Array) -> tuple[Array, Array]:
        """`rows_at` for consecutive samples, by whole blocks that are kept: most of its cost does not depend on their number."""
        if not len(sample):
            return self.rows_at(sample)
        first, last = int(sample[0]) // _BLOCK, int(sample[-1]) // _BLOCK
        row, group = (np.concatenate(parts) for parts in zip(*(self._block(number) for number in range(first, last + 1)), strict=True))
        inside = slice(int(sample[0]) - first * _BLOCK, int(sample[-1]) + 1 - first * _BLOCK)
        return row[inside], group[inside]

    def report(self) -> dict[str, Any]:
        """What a stage records about it."""
        return {"shares": self.shares, "rows": self.rows_of, "padding": round(self.padding, 6), "length": self.length}


def choose_method(kind: str, value: Choice | str | dict[str, Any]) -> Choice:
    """A method from a recipe's choice or from a plain name or table.

    Raises:
        RecipeError: there is none of that name, or its options are wrong.
    """
    try:
        return choose(kind, value)
    except PydanticCustomError as error:
        context = error.context or {}
        faults = context.get("nested") or []
        problem = f"{faults[0].problem}" if faults else error.message()
        where = ".".join([kind.rpartition("/")[2], *(str(part) for part in faults[0].at)]) if faults else kind.rpartition("/")[2]
        raise RecipeError(problem, key=where, mend=context.get("mend")) from None
