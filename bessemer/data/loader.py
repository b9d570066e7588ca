"""The loader: a pure function from sample numbers to batches, so its state is one integer, and what an online mix decided so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic_core import PydanticCustomError

from bessemer.core.batch import Batch
from bessemer.core.errors import DataError, RecipeError
from bessemer.core.progress import Progress
from bessemer.core.registry import Choice, choose
from bessemer.data.layout import gather
from bessemer.data.mix._online import Online, View
from bessemer.data.packed import Packed
from bessemer.data.pieces import Pieces
from bessemer.data.prefixes import Prefixed, Prefixes
from bessemer.data.rows import Array
from bessemer.data.sparse_logits import SparseLogits
from bessemer.data.tokens import By, Split, Tokens

_BLOCK = 4096
"""Samples looked up at once."""
_NEVER = 1 << 62


class Loader:
    """Packs a split into rows and says which rows any batch consists of.

    Sample n of the global order belongs to the group (domain or source) that `Mixture` gives it; it is the next row of
    that group's current epoch, and every epoch goes through the group's rows in another keyed order. Nothing depends on
    what was asked before, on how many rows are asked for at once, or on the number of ranks.

    A mix that changes while a model trains is asked by `follow` before every step. What it answers holds from that step's first sample on
    and is recorded (`state`), so the order is a function of the seed and of what is recorded. The same goes for the sample at which a
    condition's cooldown begins: from there on the rows are those of the bare documents.

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
        prefixes: what stands before each document, made by a method of data/condition.
        logits: a teacher's likeliest tokens, laid beside the targets as the streams `teacher_ids` and `teacher_logs`,
            [rows, length, kept].

    Attributes:
        names: the groups; `Batch.sources` numbers them.
        shares: name -> share of the samples at the start, summing to one.
        rows_of: name -> rows in one epoch.
        epoch: rows of all groups together.
        padding: the share of places that hold no token, over all rows.
        levelled: whether the packing fills each row with pieces of one size, so that rows can be folded to it (data/fold.py).

    Raises:
        DataError: there is less text than one row, a group with a share has no document in this split, or the logits are another store's.
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
        prefixes: Prefixes | None = None,
        logits: SparseLogits | None = None,
    ) -> None:
        self.logits = logits
        if logits is not None:
            if prefixes is not None:
                raise RecipeError("a teacher's logits are for bare documents, and these are told something", key="task.condition")
            logits.check_store(tokens)
        self.tokens, self.length, self.seed, self.split, self.task = tokens, length, seed, split, task
        if length < 1:
            raise RecipeError(f"a row has at least one token, and {length} is given", key="length")
        groups = self._groups(mix is None, by, only)
        sizes = {name: int(tokens.lengths[found].sum()) for name, found in groups.items()}
        if sum(sizes.values()) < length:
            problem = f"a row has {length} tokens, and the whole {split} split has {sum(sizes.values())}"
            raise DataError(problem, file=tokens.folder, key="length", mend="shorten the rows or collect more text")
        made = {"all": 1.0} if mix is None else choose_method("data/mix", mix)(sizes)
        self.online: Online | None = made if isinstance(made, Online) else None
        self.shares: dict[str, float] = dict(made.shares if isinstance(made, Online) else made)
        self.names = list(self.shares)
        self._check_shares(sizes)
        self.pieces = Pieces(list(self.shares.values()))
        self._rows(groups, choose_method("data/pack", pack), prefixes)
        self._block = lru_cache(8)(lambda *at: self._rows_in(np.arange(at[-1] * _BLOCK, (at[-1] + 1) * _BLOCK), *at[:-1]))

    def _groups(self, together: bool, by: By, only: list[str] | None) -> dict[str, Array]:
        known = self.tokens.domains if by == "domain" else self.tokens.sources
        groups = {name: self.tokens.documents(self.split, by, name) for name in (known if only is None else only)}
        return {"all": np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *groups.values()]))} if together else groups

    def _check_shares(self, sizes: dict[str, int]) -> None:
        for name, share in self.shares.items():
            if share and not sizes[name]:
                problem = f"'{name}' has a share of {share:.3g}, and no document in the {self.split} split"
                raise DataError(problem, file=self.tokens.folder, key=f"mix.weights.{name}", mend="leave it out, or collect more of it")

    def _rows(self, groups: dict[str, Array], pack: Choice, prefixes: Prefixes | None) -> None:
        """Packs the documents: with their prefixes, if there are any, and bare if the prefixes end some time."""
        used = {name: groups[name] if self.shares[name] or self.online else groups[name][:0] for name in self.names}
        views: list[Any] = [self.tokens] if prefixes is None else [Prefixed(self.tokens, prefixes), *([self.tokens] if prefixes.cooldown else [])]
        self._views: list[tuple[Any, Packed]] = [(view, Packed(view.lengths, used, pack, self.length, self.seed)) for view in views]
        self.cooldown, self.cools_from = (prefixes.cooldown if prefixes else 0.0), _NEVER
        packed = self._views[0][1]
        self.rows, self.rows_of = packed.rows, dict(zip(self.names, packed.counts.tolist(), strict=True))
        self.epoch, self.padding, self.levelled = self.rows.count, self.rows.padding, packed.levelled

    def rows_at(self, sample: Array) -> tuple[Array, Array]:
        """Which row of `self.rows`, and which group, each sample of the global order is: two int64 arrays."""
        return self._rows_in(np.asarray(sample, dtype=np.int64), self.pieces, self._views[0][1])

    def _rows_in(self, sample: Array, pieces: Pieces, packed: Packed) -> tuple[Array, Array]:
        group, index = pieces.at(sample)
        return packed.at(group, index), group

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """Samples `start` to `start + rows` of the global order, or one rank's contiguous block of them.

        Args:
            start: the loader's state: how many samples came before.
            rows: rows of the global batch.
            rank, ranks: which block of the global batch; blocks differ by at most one row.
        """
        sample = np.arange(start + rows * rank // ranks, start + rows * (rank + 1) // ranks, dtype=np.int64)
        view, packed = self._views[-1 if start >= self.cools_from else 0]
        row, group = self._looked_up(sample, packed)
        batch = gather(view, packed.rows, row, places=self.logits is not None)
        if self.logits is not None:
            ids, logs = self.logits.take(batch.streams.pop("place").numpy())
            batch.streams |= {"teacher_ids": torch.from_numpy(ids), "teacher_logs": torch.from_numpy(logs)}
        batch.samples, batch.sources, batch.task = torch.from_numpy(sample), torch.from_numpy(group), self.task
        return batch

    def follow(self, progress: Progress, start: int, measure: Callable[[], Mapping[str, float]]) -> bool:
        """Lets an online mix and a cooldown look at where the run stands, before its step begins at sample `start`.

        Args:
            measure: held-out nats per token by group, under the model as it is; called only when the mix wants it.

        Returns:
            whether samples from `start` on are others than before.
        """
        changed = False
        if self.cooldown and self.cools_from == _NEVER and progress.fraction >= 1.0 - self.cooldown:
            self.cools_from, changed = start, True
        if self.online is not None:
            shares = self.online.look(View(progress, self.epochs(start), measure))
            if shares is not None:
                self.pieces, changed = self.pieces.then(start, [shares[name] for name in self.names]), True
        return changed

    def epochs(self, sample: int) -> dict[str, float]:
        """group -> how many times its rows were gone through when `sample` samples have been read."""
        counts = self.pieces.counts(sample)
        return {name: int(count) / self.rows_of[name] for name, count in zip(self.names, counts, strict=True) if self.rows_of[name]}

    def state(self) -> dict[str, Any]:
        """What an online mix decided and the start of the cooldown, as JSON can hold it; empty where neither can change."""
        if self.online is None:
            return {"cools_from": self.cools_from} if self.cooldown else {}
        return {"cools_from": self.cools_from, "pieces": self.pieces.state(), "mix": self.online.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave.

        Raises:
            ArtifactError: it is of other groups.
        """
        self.cools_from = int(state.get("cools_from", _NEVER))
        if self.online is not None:
            self.pieces = Pieces.restored(state["pieces"], len(self.names))
            self.online.restore(state["mix"])

    def _looked_up(self, sample: Array, packed: Packed) -> tuple[Array, Array]:
        """Row and group of consecutive samples, by whole blocks that are kept: most of its cost does not depend on their number."""
        pieces = self.pieces
        if not len(sample):
            return self._rows_in(sample, pieces, packed)
        first, last = int(sample[0]) // _BLOCK, int(sample[-1]) // _BLOCK
        row, group = (np.concatenate(parts) for parts in zip(*(self._block(pieces, packed, n) for n in range(first, last + 1)), strict=True))
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
