"""The corpus: documents as Parquet shards that are written in a stream and read back in batches of bounded memory."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from bessemer.core import files
from bessemer.core.artifact import Artifact, seal
from bessemer.core.errors import DataError
from bessemer.data.document import Document

COLUMNS = ("text", "id", "source", "domain", "metadata")
SCHEMA = pyarrow.schema([pyarrow.field(name, pyarrow.string(), nullable=False) for name in COLUMNS])
SHARDS, COUNTS = "shards", "counts.json"
GROUP_BYTES = 4 << 20
"""Text in one Parquet row group, in bytes: what a reader must hold at least."""

Tally = Counter[tuple[str, str, str]]
"""(source, domain, "documents" or "bytes") -> how many."""


class Corpus(Artifact):
    """Documents in Parquet shards (`shards/*.parquet`, zstd) with columns text, id, source, domain, metadata (JSON).

    The order of documents is the order of the shards' names and of the rows within them.
    """

    kind = "corpus"

    @property
    def shards(self) -> list[Path]:
        """The shards in the corpus's order."""
        return sorted((self.folder / SHARDS).glob("*.parquet"))

    @property
    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """source -> domain -> {"documents": n, "bytes": n}; bytes are those of the text in UTF-8."""
        return files.read_json(self.folder / COUNTS)

    @property
    def domains(self) -> list[str]:
        return sorted({domain for inner in self.counts.values() for domain in inner})

    @property
    def sources(self) -> list[str]:
        return sorted(self.counts)

    @property
    def count(self) -> int:
        """How many documents there are."""
        return sum(entry["documents"] for inner in self.counts.values() for entry in inner.values())

    @property
    def bytes(self) -> int:
        """How many bytes of UTF-8 the texts have together."""
        return sum(entry["bytes"] for inner in self.counts.values() for entry in inner.values())

    def batches(self, columns: Sequence[str] = COLUMNS, rows: int = 1024, shards: Sequence[Path] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """The documents in order, as Arrow batches of at most `rows` rows; memory is bounded by one row group.

        Args:
            columns: which of COLUMNS to read.
            rows: the most rows in a batch.
            shards: read only these (a worker's share); all of them by default.

        Raises:
            DataError: a shard is no Parquet file, is truncated, or lacks a column.
        """
        for shard in self.shards if shards is None else shards:
            yield from read_shard(shard, columns, rows)

    def documents(self, domain: str | None = None) -> Iterator[Document]:
        """The documents in order; of one domain if it is named."""
        for batch in self.batches():
            for document in as_documents(batch):
                if domain is None or document.domain == domain:
                    yield document


def read_shard(shard: Path, columns: Sequence[str] = COLUMNS, rows: int = 1024) -> Iterator[pyarrow.RecordBatch]:
    """The rows of one shard in order, in batches that never span row groups.

    Raises:
        DataError: it is no Parquet file, is truncated, or lacks a column.
    """
    try:
        with pyarrow.parquet.ParquetFile(shard) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise DataError(f"has no column {', '.join(sorted(missing))}, so it is no shard of a corpus", file=shard)
            for group in range(file.num_row_groups):
                yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"can't be read as Parquet: {str(error).splitlines()[0]}", file=shard, mend="make the corpus anew") from None


def as_documents(batch: pyarrow.RecordBatch) -> Iterator[Document]:
    """The rows of a batch that has every column, as documents."""
    columns = [batch.column(name).to_pylist() for name in COLUMNS]
    for text, id_, source, domain, metadata in zip(*columns, strict=True):
        yield Document(text, source, domain, id_, json.loads(metadata) if metadata != "{}" else {})


class ShardWriter:
    """Writes documents to numbered shards, each appearing under its name only when whole.

    Where shards and row groups are cut depends on the documents alone, so the files are the same byte for byte
    whoever writes them.

    Args:
        folder: the corpus's folder; shards go to `shards/` inside it.
        name: what the shards' names begin with: `NAME-00000.parquet`.
        shard_bytes: a shard is closed once it holds this much text.
    """

    def __init__(self, folder: Path, name: str = "00000", *, shard_bytes: int = 16 << 20) -> None:
        self.place, self.name, self.shard_bytes = Path(folder) / SHARDS, name, shard_bytes
        with files.disk_errors(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        self.tally: Tally = Counter()
        self.written: list[str] = []
        self._rows: list[tuple[str, str, str, str, str]] = []
        self._row_bytes = self._in_shard = 0
        self._file: pyarrow.parquet.ParquetWriter | None = None
        self._temporary: Path | None = None

    def add(self, document: Document) -> None:
        """Appends one document; lone surrogates, which UTF-8 can't hold, become U+FFFD."""
        text = document.text
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            size = len(text.encode())
        metadata = json.dumps(document.metadata, sort_keys=True, default=str) if document.metadata else "{}"
        self._rows.append((text, document.id, document.source, document.domain, metadata))
        self.tally[document.source, document.domain, "documents"] += 1
        self.tally[document.source, document.domain, "bytes"] += size
        self._row_bytes += size
        if self._row_bytes >= min(GROUP_BYTES, self.shard_bytes):
            self._flush()

    def add_batch(self, batch: pyarrow.RecordBatch) -> None:
        """Appends the rows of a batch that has every column, as one row group and without making strings of them."""
        self._flush()
        table = pyarrow.Table.from_batches([batch.select(list(COLUMNS))]).cast(SCHEMA)
        sizes = pyarrow.compute.binary_length(table["text"])
        keyed = pyarrow.table({"source": table["source"], "domain": table["domain"], "bytes": sizes})
        for row in keyed.group_by(["source", "domain"]).aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
            self.tally[row["source"], row["domain"], "documents"] += row["bytes_count"]
            self.tally[row["source"], row["domain"], "bytes"] += row["bytes_sum"]
        self._write(table, pyarrow.compute.sum(sizes).as_py() or 0)

    def close(self) -> None:
        """Writes what is still held and closes the last shard."""
        self._flush()
        self._end_shard()

    def discard(self) -> None:
        """Drops the unfinished shard; those already whole stay."""
        if self._file is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        self._file = self._temporary = None

    def _flush(self) -> None:
        if self._rows:
            columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*self._rows, strict=True)]
            table, size = pyarrow.Table.from_arrays(columns, schema=SCHEMA), self._row_bytes
            self._rows, self._row_bytes = [], 0
            self._write(table, size)

    def _write(self, table: pyarrow.Table, size: int) -> None:
        if not table.num_rows:
            return
        with files.disk_errors(self.place):
            if self._file is None:
                handle, name = tempfile.mkstemp(prefix=f".{self.name}-", suffix=".partial", dir=self.place)
                os.close(handle)
                self._temporary = Path(name)
                self._file = pyarrow.parquet.ParquetWriter(name, SCHEMA, compression="zstd", compression_level=1, use_dictionary=list(COLUMNS[2:]))
            self._file.write_table(table, row_group_size=table.num_rows)
        self._in_shard += size
        if self._in_shard >= self.shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None or self._temporary is None:
            return
        with files.disk_errors(self.place):
            self._file.close()
            name = f"{self.name}-{len(self.written):05d}.parquet"
            with open(self._temporary, "rb") as file:
                os.fsync(file.fileno())
            self._temporary.chmod(0o644)
            os.replace(self._temporary, self.place / name)
        self.written.append(name)
        self._file, self._temporary, self._in_shard = None, None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise


class CorpusWriter(ShardWriter):
    """Writes a whole corpus's files from one process: `with CorpusWriter(folder) as writer: writer.add(document)`.

    The folder becomes an artifact once it is sealed (the runner does that for a stage; `write_corpus` by itself).
    """

    def close(self) -> None:
        super().close()
        write_counts(self.place.parent, self.tally)


def write_corpus(folder: str | Path, documents: Iterable[Document], *, shard_bytes: int = 16 << 20) -> Corpus:
    """Writes documents as a sealed corpus and opens it: for scripts and tests; stages are sealed by the runner."""
    folder = Path(folder)
    with CorpusWriter(folder, shard_bytes=shard_bytes) as writer:
        for document in documents:
            writer.add(document)
    seal(folder, Corpus.kind, recipe={}, parents={}, info=describe(writer.tally))
    return Corpus.open(folder, verify=False)


def write_counts(folder: Path, tally: Tally) -> None:
    """Writes `counts.json`: source -> domain -> documents and bytes."""
    nested: dict[str, dict[str, dict[str, int]]] = {}
    for (source, domain, what), value in sorted(tally.items()):
        nested.setdefault(source, {}).setdefault(domain, {})[what] = value
    files.write_json(folder / COUNTS, nested)


def describe(tally: Tally) -> dict[str, Any]:
    """Documents and bytes in all, by source and by domain, as a stage reports them."""
    found: dict[str, Any] = {"documents": 0, "bytes": 0, "by_source": {}, "by_domain": {}}
    for (source, domain, what), value in sorted(tally.items()):
        found[what] += value
        for group, name in (("by_source", source), ("by_domain", domain)):
            entry = found[group].setdefault(name, {"documents": 0, "bytes": 0})
            entry[what] += value
    return found
