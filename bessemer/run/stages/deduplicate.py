"""Removing copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy

from bessemer.core.errors import DataError
from bessemer.core.registry import Auto, Choice, Kind, choose
from bessemer.core.work import Work
from bessemer.data import duplicates, workers
from bessemer.data.assemble import assemble, discard_torn
from bessemer.data.corpus import Corpus
from bessemer.data.duplicates import Array, Keep, Scope

Methods = list[Annotated[Choice, Kind("data/select")]]
EVERYDAY: Any = ["exact", "minhash"]


def deduplicate(
    work: Work,
    corpus: Corpus,
    *,
    methods: Methods = EVERYDAY,
    scope: Scope = "global",
    keep: Keep = "first",
    engine: workers.Engine = "local",
    processes: int | Auto = "auto",
) -> Corpus:
    """Removes exact and near copies (SlimPajama's local and global deduplication, Shen et al. 2023), one kept of each cluster.

    Writes the corpus without them and `pairs.parquet`: every removed document beside the kept one. The methods work one
    after the other, each on what the ones before it kept.

    Args:
        work: where to.
        corpus: what to look through.
        methods: how copies are found.
        scope: look within each source, or across all of them.
        keep: of a cluster, the document that comes first, or the longest.
        engine: where the work is done; the result is the same.
        processes: how many at once.

    Raises:
        DataError: the corpus is empty.
    """
    methods = [choose("data/select", method) for method in methods]
    shards, place = corpus.shards, work.out / ".keys"
    place.mkdir(exist_ok=True)
    discard_torn(work.out)
    if not shards:
        raise DataError("there is no document in it", file=corpus.folder)
    total = 2 * len(shards)
    with workers.Pool(engine, processes) as pool:
        units = [{"shard": str(shard), "place": str(place), "index": i, "methods": methods} for i, shard in enumerate(shards)]
        found = pool.run(
            duplicates.find_keys, units, ledger=place / "units", stamp=corpus.hash, on_done=lambda done, _: work.progress(done, total, "shards")
        )
        sources, numbers = _sources(found, place)
        leader, method = _settle(place, len(units), methods, scope, keep, numbers)
        lone = leader == numpy.arange(len(leader))
        masks = _write_masks(place, lone, [entry["documents"] for entry in found])
        units = [{"shard": str(shards[i]), "folder": str(work.out), "index": i, "mask": mask} for i, mask in enumerate(masks)]
        results = pool.run(duplicates.write_kept, units, on_done=lambda done, _: work.progress(len(units) + done, total, "shards"))
    removed = numpy.flatnonzero(~lone)
    duplicates.write_pairs(work.out / "pairs.parquet", shards, removed, leader[removed], method[removed], [m.name for m in methods])
    work.info.update(assemble(work.out, results, "there is no document in it", "collect something first"))
    work.info.update(_report(leader, method, methods, sources, numbers))
    return None  # type: ignore[return-value]  # the runner seals and opens it


def _sources(found: list[dict[str, Any]], place: Path) -> tuple[list[str], Array]:
    """All sources' names, and which of them each document is of, int64 [documents]."""
    names = sorted({name for entry in found for name in entry["sources"]})
    codes = []
    for entry, about in zip(found, duplicates.load(place, len(found), "about"), strict=True):
        codes.append(numpy.array([names.index(name) for name in entry["sources"]], dtype=numpy.int64)[about[1]])
    return names, numpy.concatenate(codes)


def _settle(place: Path, shards: int, methods: list[Choice], scope: Scope, keep: Keep, numbers: Array) -> tuple[Array, Array]:
    """For every document the one that stands for it, and the number of the method that said so (-1 for none)."""
    sizes = numpy.concatenate([about[0] for about in duplicates.load(place, shards, "about")])
    rank = duplicates.ranks(sizes, keep)
    leader = numpy.arange(len(sizes))
    method = numpy.full(len(sizes), -1, dtype=numpy.int64)
    for number in range(len(methods)):
        alive = method < 0
        found = duplicates.leaders(duplicates.load(place, shards, number), alive, rank, numbers if scope == "local" else None)
        method[alive & (found != numpy.arange(len(sizes)))] = number
        leader = found[leader]  # a copy of a copy goes by the one that is kept
    return leader, method


def _write_masks(place: Path, lone: Array, counts: list[int]) -> list[str]:
    names, start = [], 0
    for index, count in enumerate(counts):
        name = place / f"{index:05d}-mask.npy"
        duplicates.save(name, lone[start : start + count])
        names.append(str(name))
        start += count
    return names


def _report(leader: Array, method: Array, methods: list[Choice], sources: list[str], numbers: Array) -> dict[str, Any]:
    removed = numpy.flatnonzero(method >= 0)
    pairs = Counter(zip(numbers[leader[removed]].tolist(), numbers[removed].tolist(), strict=True))
    _, sizes = numpy.unique(leader[removed], return_counts=True)
    return {
        "documents_before": len(leader),
        "removed": {m.name: int((method == i).sum()) for i, m in enumerate(methods)},
        "removed_by_sources": {f"{sources[a]} > {sources[b]}": count for (a, b), count in sorted(pairs.items())},
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max()) + 1 if len(sizes) else 0,
    }
