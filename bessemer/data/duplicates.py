"""Finding copies across a whole corpus: keys shard by shard, then clusters of documents that share a key."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from bessemer.core import files
from bessemer.core.registry import Choice
from bessemer.data.assemble import result_of
from bessemer.data.corpus import COLUMNS, ShardWriter, read_shard
from bessemer.data.select._words import mix

Array = numpy.ndarray[Any, Any]
Scope = Literal["local", "global"]
Keep = Literal["first", "longest"]


def find_keys(*, shard: str, place: str, index: int, methods: list[Choice]) -> dict[str, Any]:
    """A unit of work: the keys of one shard's documents, written to `place`.

    Returns:
        {"documents": n, "sources": their names}; in `place` lie `INDEX-METHOD.npy`, uint64 [keys, documents], and
        `INDEX-about.npy`, int64 [2, documents], bytes and number of the source.
    """
    keys: list[list[Array]] = [[] for _ in methods]
    sizes, sources = [], []
    for batch in read_shard(Path(shard), ("text", "source")):
        texts = batch.column(0)
        for number, method in enumerate(methods):
            keys[number].append(method(texts))
        sizes.append(pyarrow.compute.binary_length(texts).to_numpy().astype(numpy.int64))
        sources.append(batch.column(1))
    coded = pyarrow.chunked_array(sources).combine_chunks().dictionary_encode()
    about = numpy.stack([numpy.concatenate(sizes), coded.indices.to_numpy().astype(numpy.int64)])
    for number in range(len(methods)):
        save(Path(place, f"{index:05d}-{number}.npy"), numpy.concatenate(keys[number], axis=1))
    save(Path(place, f"{index:05d}-about.npy"), about)
    return {"documents": about.shape[1], "sources": coded.dictionary.to_pylist()}


def write_kept(*, shard: str, folder: str, index: int, mask: str) -> dict[str, Any]:
    """A unit of work: copies the documents of one shard that a mask (bool [documents], a .npy file) keeps."""
    kept = numpy.load(mask)
    start = 0
    with ShardWriter(Path(folder), f"{index:05d}", shard_bytes=1 << 62) as writer:
        for batch in read_shard(Path(shard), COLUMNS, rows=1 << 20):  # whole row groups
            part = kept[start : start + batch.num_rows]
            writer.add_batch(batch if part.all() else batch.filter(pyarrow.array(part)))
            start += batch.num_rows
    return result_of(writer)


def leaders(blocks: Sequence[Array], alive: Array, rank: Array, sources: Array | None) -> Array:
    """For every document the one that stands for its cluster: itself, if it is kept.

    Clusters are the connected components of "shares a key" (union-find).

    Args:
        blocks: uint64 [keys, documents of a shard] for each shard; 0 is no key.
        alive: bool [documents], those that may be linked.
        rank: int64 [documents], a permutation; the lowest of a cluster stands for it.
        sources: int64 [documents] to link within each source only.

    Returns:
        int64 [documents].
    """
    from scipy.sparse import coo_matrix  # here, since workers don't need it and start sooner without
    from scipy.sparse.csgraph import connected_components

    count = len(alive)
    left, right = [], []
    for row in range(len(blocks[0])):
        column = numpy.concatenate([block[row] for block in blocks])
        candidates = numpy.flatnonzero(alive & (column != 0))
        values = column[candidates]
        if sources is not None:
            values = mix(values ^ mix(sources[candidates].astype(numpy.uint64) + numpy.uint64(1)))
        order = numpy.argsort(values)
        values = values[order]
        same = numpy.flatnonzero(values[1:] == values[:-1])
        left.append(candidates[order[same]])
        right.append(candidates[order[same + 1]])
    ends = numpy.concatenate(left), numpy.concatenate(right)
    graph = coo_matrix((numpy.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    by_rank = numpy.argsort(rank)[::-1]
    first = numpy.zeros(count, dtype=numpy.int64)
    first[labels[by_rank]] = by_rank  # the last one written, the lowest rank, stays
    return first[labels]


def load(place: Path, shards: int, what: str | int) -> list[Array]:
    """The arrays that `find_keys` wrote, mapped from disk."""
    return [numpy.load(place / f"{index:05d}-{what}.npy", mmap_mode="r") for index in range(shards)]


def ranks(sizes: Array, keep: Keep) -> Array:
    """The order in which documents are preferred, int64 [documents], 0 the most."""
    order = numpy.arange(len(sizes)) if keep == "first" else numpy.lexsort((numpy.arange(len(sizes)), -sizes))
    rank = numpy.empty(len(sizes), dtype=numpy.int64)
    rank[order] = numpy.arange(len(sizes))
    return rank


def write_pairs(file: Path, shards: Sequence[Path], removed: Array, kept: Array, method: Array, names: Sequence[str]) -> None:
    """Lists every removed document beside the one that stands for it, as Parquet.

    Args:
        file: where to.
        shards: the corpus's.
        removed, kept: int64 [pairs], places in the corpus, `removed` ascending.
        method: int64 [pairs], which of `names` found it.
        names: the methods'.
    """
    wanted = numpy.unique(numpy.concatenate([removed, kept]))
    found = (
        pyarrow.concat_tables(list(_rows(shards, wanted))) if len(wanted) else pyarrow.table({c: pyarrow.array([], "string") for c in COLUMNS[1:4]})
    )
    columns: dict[str, Any] = {}
    for which, places in (("kept", kept), ("removed", removed)):
        rows = found.take(numpy.searchsorted(wanted, places))
        columns |= {f"{which}_{name}": rows[name] for name in ("source", "domain", "id")}
    columns["method"] = pyarrow.array(names, "string").take(pyarrow.array(method, "int64"))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
    files.write(file, sink.getvalue())


def _rows(shards: Sequence[Path], wanted: Array) -> Iterator[pyarrow.Table]:
    start = 0
    for shard in shards:
        for batch in read_shard(shard, COLUMNS[1:4], rows=1 << 20):
            here = wanted[numpy.searchsorted(wanted, start) : numpy.searchsorted(wanted, start + batch.num_rows)]
            yield pyarrow.Table.from_batches([batch]).take(pyarrow.array(here - start))
            start += batch.num_rows


def save(path: Path, array: Array) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    sink = io.BytesIO()
    numpy.save(sink, array, allow_pickle=False)
    files.write(path, sink.getvalue())
