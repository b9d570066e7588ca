"""A teacher's likeliest tokens and their log-probabilities for every token of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.core.errors import ArtifactError, DataError
from bessemer.data.rows import Array
from bessemer.data.tokens import Tokens

META, IDS, LOGS = "logits.json", "ids.bin", "logs.bin"


class SparseLogits(Artifact):
    """For each token of a store, the `keep` tokens a teacher held likeliest in its place, with their log-probabilities.

    Two files hold one row for each token, in the store's order: ids in two or four bytes, log-probabilities as float16. Tokens that the
    teacher didn't read (those held out) have zero probability throughout.

    Attributes:
        keep: tokens kept for each.
        tokens: rows in all.
        store: hash of the token store they belong to.
    """

    kind = "logits"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        self.meta = files.read_json(self.folder / META)
        self.keep, self.tokens, self.store = int(self.meta["keep"]), int(self.meta["tokens"]), str(self.meta["store"])
        self._ids, self._logs = (self._map(name, dtype) for name, dtype in ((IDS, self.meta["dtype"]), (LOGS, "<f2")))

    def _map(self, name: str, dtype: str) -> Array:
        path = self.folder / name
        try:
            content = np.memmap(path, dtype=np.dtype(dtype), mode="r")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"can't be mapped: {error}", file=path) from None
        if content.size != self.tokens * self.keep:
            raise ArtifactError(f"holds {content.size} values where {self.tokens} x {self.keep} are wanted: it was truncated", file=path)
        return content.reshape(self.tokens, self.keep)

    def take(self, places: Array) -> tuple[Array, Array]:
        """ids int64 and log-probabilities float32, [..., keep] for places [...]; where a place is below 0, nothing is likely."""
        at = np.maximum(places, 0)
        logs = self._logs[at].astype(np.float32)
        logs[places < 0] = -np.inf
        return self._ids[at].astype(np.int64), logs

    def check_store(self, tokens: Tokens) -> None:
        """Refuses a store other than the one the teacher read.

        Raises:
            DataError: it is another one.
        """
        if tokens.hash != self.store or tokens.total != self.tokens:
            raise DataError(
                f"the teacher's logits are for the token store {self.store[:12]}, and {tokens.folder} is {tokens.hash[:12]}",
                file=self.folder,
                mend="store the teacher's logits for this store",
            )


class LogitsWriter:
    """Fills the files of `SparseLogits` in any order; they are whole once `close` has been called."""

    def __init__(self, folder: Path, tokens: Tokens, keep: int) -> None:
        self.folder, self.keep = folder, keep
        dtype = "<u2" if tokens.vocabulary <= 1 << 16 else "<u4"
        self.meta = {"keep": keep, "tokens": tokens.total, "store": tokens.hash, "dtype": dtype}
        shape = (tokens.total, keep)
        with files.disk_errors(folder):
            self.ids = np.memmap(folder / IDS, dtype=np.dtype(dtype), mode="w+", shape=shape)
            self.logs = np.memmap(folder / LOGS, dtype=np.dtype("<f2"), mode="w+", shape=shape)
        for start in range(0, tokens.total, 1 << 20):
            self.logs[start : start + (1 << 20)] = -np.inf

    def put(self, places: Array, ids: Array, logs: Array) -> None:
        """places int64 [count]; ids and logs [count, keep]."""
        self.ids[places], self.logs[places] = ids, logs

    def close(self) -> None:
        self.ids.flush()
        self.logs.flush()
        files.write_json(self.folder / META, self.meta)
