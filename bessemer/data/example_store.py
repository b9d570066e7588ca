"""The example store: every modality's values in one memory-mapped file each, captions and labels beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.core.errors import ArtifactError, DataError, neighbours
from bessemer.data.example import Array, Example, Unreadable
from bessemer.data.examples._decode import fit

META, TABLE = "examples.json", "examples.parquet"
FITTED = ("picture",)
"""Modalities that are cut and scaled to one size; of the others all values must have one shape."""
PARTS = ("train", "held_out")


class Examples(Artifact):
    """Examples of one or several modalities (`MODALITY.bin`), each with caption, labels and what it lacks (`examples.parquet`).

    An example is held out when the hash of its id falls below a fraction, so it stays on its side whatever is added.

    Attributes:
        shapes: modality -> shape of one value.
        texts: captions, "" where there is none.
        labels: facts about each example, by name.
        row: modality -> int64 [examples], which value of the modality's file is the example's; -1 where it has none.
        held_out: bool [examples].
    """

    kind = "examples"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        meta = files.read_json(self.folder / META)
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(each["shape"]) for name, each in meta["modalities"].items()}
        self._types = {name: np.dtype(each["dtype"]) for name, each in meta["modalities"].items()}
        try:
            table = pyarrow.parquet.read_table(self.folder / TABLE)
        except (pyarrow.ArrowException, OSError) as error:
            raise ArtifactError(f"can't be read: {error}", file=self.folder / TABLE) from None
        self.texts: list[str] = table.column("text").to_pylist()
        self.labels: list[dict[str, str]] = [json.loads(each) for each in table.column("labels").to_pylist()]
        self.row = {name: table.column(f"row_{name}").to_numpy().astype(np.int64) for name in self.shapes}
        hashes = table.column("hash").to_numpy().astype(np.uint64)
        self.held_out = hashes < np.uint64(min(float(meta["held_out"]) * 2.0**64, 2.0**64 - 2048))
        self._maps: dict[str, Array] = {}

    @property
    def count(self) -> int:
        return len(self.texts)

    def members(self, part: str, modality: str | None = None, captioned: bool = False) -> Array:
        """int64: the numbers of the examples of a part ("train", "held_out") that have a modality, and a caption if it is asked for.

        Raises:
            DataError: the store has no such modality.
        """
        chosen = self.held_out if part == "held_out" else ~self.held_out
        if modality is not None:
            if modality not in self.row:
                raise DataError(f"the examples have no '{modality}'", file=self.folder, key="modality", mend=neighbours(modality, self.row))
            chosen = chosen & (self.row[modality] >= 0)
        if captioned:
            chosen = chosen & np.array([bool(text) for text in self.texts], dtype=bool)
        return np.flatnonzero(chosen)

    def take(self, modality: str, numbers: Array) -> Array:
        """The values of some examples [*numbers.shape, *shape]; zeros where one has none."""
        if modality not in self._maps:
            count = int((self.row[modality] >= 0).sum())
            path, shape, dtype = self.folder / f"{modality}.bin", self.shapes[modality], self._types[modality]
            try:
                content = np.memmap(path, dtype=dtype, mode="r")
                self._maps[modality] = content.reshape(count, *shape)
            except (OSError, ValueError) as error:
                raise ArtifactError(f"doesn't hold {count} values of shape {list(shape)}: {error}", file=path) from None
        row = self.row[modality][numbers]
        found = self._maps[modality][np.maximum(row, 0)]
        return np.where((row >= 0).reshape(row.shape + (1,) * len(self.shapes[modality])), found, 0).astype(self._types[modality])


class ExampleWriter:
    """Writes a store, example by example.

    Args:
        folder: where to.
        edge: pictures are cut and scaled to edge x edge.
        limit: how many unreadable items to pass over before giving up.
    """

    def __init__(self, folder: Path, edge: int, limit: int) -> None:
        self.folder, self.edge, self.limit = folder, edge, limit
        self.files: dict[str, BinaryIO] = {}
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.counts: Counter[str] = Counter()
        self.rows: list[tuple[str, str, str, int, dict[str, int]]] = []
        self.unreadable: list[Unreadable] = []

    def add_all(self, found: Iterable[Example | Unreadable]) -> Iterable[int]:
        """Adds what a source yields; gives the count so far after each.

        Raises:
            DataError: too much was unreadable, or a value's shape differs from those before.
        """
        for each in found:
            if isinstance(each, Unreadable):
                self.unreadable.append(each)
                if len(self.unreadable) > self.limit:
                    problem = f"{len(self.unreadable)} items can't be read, the last because it {each.reason}"
                    raise DataError(problem, file=each.where, mend=f"mend or remove them, or raise unreadable above {self.limit}")
                continue
            self._add(each)
            yield len(self.rows)

    def _add(self, example: Example) -> None:
        rows = {}
        for modality, given in example.values.items():
            value = np.ascontiguousarray(fit(given, self.edge) if modality in FITTED else given)
            known = self.shapes.setdefault(modality, (value.shape, value.dtype.str))
            if known != (value.shape, value.dtype.str):
                problem = f"its {modality} has shape {list(value.shape)}, and those before have {list(known[0])}"
                raise DataError(problem, file=example.source, key=example.id, mend="bring all to one shape")
            if modality not in self.files:
                self.files[modality] = (self.folder / f"{modality}.bin").open("wb")
            self.files[modality].write(value.tobytes())
            rows[modality] = self.counts[modality]
            self.counts[modality] += 1
        named = f"{example.source}\x1f{example.id}".encode()
        labels = json.dumps(example.labels, sort_keys=True)
        self.rows.append((f"{example.source}/{example.id}", example.text, labels, xxhash.xxh3_64_intdigest(named), rows))

    def close(self, held_out: float) -> dict[str, Any]:
        """Finishes the store and returns what to report of it.

        Raises:
            DataError: there is no example.
        """
        for file in self.files.values():
            file.close()
        if not self.rows:
            raise DataError("the sources hold no example", mend="look at what the sources name")
        columns: dict[str, Any] = {
            "id": [row[0] for row in self.rows],
            "text": [row[1] for row in self.rows],
            "labels": [row[2] for row in self.rows],
            "hash": pyarrow.array([row[3] for row in self.rows], pyarrow.uint64()),
        }
        columns |= {f"row_{name}": pyarrow.array([row[4].get(name, -1) for row in self.rows], pyarrow.int64()) for name in self.shapes}
        with files.disk_errors(self.folder):
            pyarrow.parquet.write_table(pyarrow.table(columns), self.folder / TABLE)
        modalities = {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in self.shapes.items()}
        files.write_json(self.folder / META, {"modalities": modalities, "held_out": held_out, "examples": len(self.rows)})
        captioned = sum(bool(row[1]) for row in self.rows)
        where = [f"{each.where}: {each.reason}" for each in self.unreadable[:5]]
        return {
            "examples": len(self.rows), "captioned": captioned, "modalities": dict(self.counts), "unreadable": len(self.unreadable), "unreadable_where": where,
        }  # fmt: skip
