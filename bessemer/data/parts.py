"""One part of one source, written to shards."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

from bessemer.core.artifact import digest
from bessemer.core.registry import Choice
from bessemer.data.assemble import result_of
from bessemer.data.corpus import ShardWriter
from bessemer.data.document import Skipped
from bessemer.data.sources import _files

SMOKE = 100
EXAMPLES = 5


def gather(*, source: Choice, part: tuple[int, int], folder: str, index: int, shard_bytes: int, smoke: bool) -> dict[str, Any]:
    """A unit of work: reads one part of a source and writes its shards.

    Returns:
        the shards and counts, {"skipped": reason -> how many, "skipped_where": reason -> the first few places}.
    """
    skipped: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    documents = source(part) if can_be_cut(source) else source()
    with ShardWriter(Path(folder), f"{index:05d}", shard_bytes=shard_bytes) as writer:
        taken = 0
        for document in documents:
            if isinstance(document, Skipped):
                skipped[document.reason] += 1
                if skipped[document.reason] <= EXAMPLES:
                    where.setdefault(document.reason, []).append(document.where)
                continue
            writer.add(document)
            taken += 1
            if smoke and taken >= SMOKE:
                break
    return result_of(writer, skipped=dict(skipped), skipped_where=where)


def can_be_cut(source: Choice) -> bool:
    """Whether the source takes `part` before its options."""
    return any(p.kind is not p.KEYWORD_ONLY for p in inspect.signature(source.target).parameters.values())


def stamp(source: Choice) -> str:
    """What the source's files were, by size and time: an interrupted stage must not go on with other ones."""
    names = source.options.get("files")
    if not isinstance(names, list) or not names:
        return ""
    found = []
    for path, name in _files.expand(names, source.options.get("endings") or (".jsonl", ".ndjson", ".json", ".parquet")):
        about = path.stat()
        found.append([name, about.st_size, about.st_mtime_ns])
    return digest(found)
