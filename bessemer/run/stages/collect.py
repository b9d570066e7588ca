"""Gathering text."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto, Choice, Kind, choose
from bessemer.core.work import Work
from bessemer.data import workers
from bessemer.data.assemble import LEDGER, assemble, discard_torn
from bessemer.data.corpus import Corpus
from bessemer.data.parts import can_be_cut, gather, stamp

Sources = list[Annotated[Choice, Kind("data/sources")]]
EMBEDDED: Any = ["stdlib"]


def collect(
    work: Work,
    *,
    sources: Sources = EMBEDDED,
    parts: int = 8,
    shard_megabytes: int = 16,
    engine: workers.Engine = "local",
    processes: int | Auto = "auto",
) -> Corpus:
    """Reads documents from sources into a corpus, several parts of each source side by side.

    Args:
        work: where to.
        sources: where the text comes from.
        parts: into how many parts a source is cut; part of what is made, unlike `processes`.
        shard_megabytes: text in a shard, in MiB.
        engine: where the work is done; the result is the same.
        processes: how many at once.

    Raises:
        DataError: a source can't be read, or there is no document in any.
    """
    if parts < 1 or shard_megabytes < 1 or not sources:
        raise RecipeError(f"parts = {parts}, shard_megabytes = {shard_megabytes} and {len(sources)} sources can't be", key="collect")
    sources = [choose("data/sources", source) for source in sources]
    units: list[dict[str, Any]] = []
    for source in sources:
        of = (1 if work.smoke else parts) if can_be_cut(source) else 1
        for index in range(of):
            units.append({"source": source, "part": (index, of), "folder": str(work.out), "index": len(units)})
    units = [unit | {"shard_bytes": shard_megabytes << 20, "smoke": work.smoke} for unit in units]
    discard_torn(work.out)
    documents = 0

    def tell(done: int, result: dict[str, Any]) -> None:
        nonlocal documents
        documents += sum(entry[3] for entry in result["tally"] if entry[2] == "documents")
        work.progress(done, len(units), "parts", documents=documents)

    with workers.Pool(engine, processes) as pool:
        results = pool.run(gather, units, ledger=work.out / LEDGER, stamp=" ".join(stamp(source) for source in sources), on_done=tell)
    skipped: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for result in results:
        skipped.update(result["skipped"])
        for reason, places in result["skipped_where"].items():
            where[reason] = (where.get(reason, []) + places)[:5]
    told = ", ".join(f"{count} {reason}: {', '.join(where[reason])}" for reason, count in skipped.most_common(4))
    problem = f"the sources hold no document{f' ({told})' if told else ''}"
    mend = 'say how the files are written, for example encoding = "latin-1"' if "mis-encoded" in skipped else "look at what the sources name"
    work.info.update(assemble(work.out, results, problem, mend))
    work.info.update(skipped=dict(sorted(skipped.items())), skipped_where=where)
    return None  # type: ignore[return-value]  # the runner seals and opens it
