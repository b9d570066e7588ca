"""From what the units of a stage wrote to the files of one corpus."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bessemer.core.errors import DataError
from bessemer.data.corpus import SHARDS, ShardWriter, Tally, describe, write_counts

LEDGER = ".units"


def result_of(writer: ShardWriter, **more: Any) -> dict[str, Any]:
    """What a unit returns of a closed writer: its shards' names and the count of what is in them, as JSON can hold it."""
    return {"shards": writer.written, "tally": [[*key, value] for key, value in sorted(writer.tally.items())], **more}


def tally_of(results: Iterable[dict[str, Any]]) -> Tally:
    """The units' counts together."""
    tally: Tally = Counter()
    for result in results:
        for source, domain, what, value in result["tally"]:
            tally[source, domain, what] += value
    return tally


def discard_torn(folder: Path) -> None:
    """Deletes what a killed writer left half written."""
    for torn in (folder / SHARDS).glob(".*.partial"):
        torn.unlink(missing_ok=True)


def assemble(folder: Path, results: list[dict[str, Any]], empty: str, mend: str) -> dict[str, Any]:
    """Writes the counts, deletes whatever is not part of the corpus, and returns what to report about it.

    Args:
        folder: where the shards lie.
        results: what `result_of` gave, for each unit.
        empty: the problem to report if there is no document.
        mend: and what puts it right.

    Raises:
        DataError: there is no document.
    """
    tally = tally_of(results)
    if not sum(value for (_, _, what), value in tally.items() if what == "documents"):
        raise DataError(empty, mend=mend)
    wanted = {name for result in results for name in result["shards"]}
    for file in (folder / SHARDS).iterdir():
        if file.name not in wanted:
            file.unlink()
    write_counts(folder, tally)
    for hidden in folder.glob(".*"):
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    return describe(tally)
