"""Cleaning text."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from bessemer.core import files
from bessemer.core.errors import DataError
from bessemer.core.registry import Auto, Choice, Kind, choose
from bessemer.core.work import Work
from bessemer.data import rules as ruling
from bessemer.data import workers
from bessemer.data.assemble import LEDGER, assemble, discard_torn
from bessemer.data.corpus import Corpus

Rules = list[Annotated[Choice, Kind("data/clean", domains=list[str])]]
EVERYDAY: Any = ["unicode", "gopher_repetition"]


def clean(
    work: Work,
    corpus: Corpus,
    *,
    rules: Rules = EVERYDAY,
    engine: workers.Engine = "local",
    processes: int | Auto = "auto",
) -> Corpus:
    """Applies cleaning rules to every document, and counts each removal by rule, reason and domain.

    Writes the corpus that stays and `removed.json`: a few removed texts for each rule and reason, to look at.

    Args:
        work: where to.
        corpus: what to clean.
        rules: in the order they work; a rule with `domains = [...]` beside its options sees only documents of these.
        engine: where the work is done; the result is the same.
        processes: how many at once.

    Raises:
        DataError: no document is left, or the corpus is empty.
    """
    chosen = [choose("data/clean", rule, {"domains": list[str]}) for rule in rules]
    units = [{"shard": str(shard), "folder": str(work.out), "index": i, "rules": chosen} for i, shard in enumerate(corpus.shards)]
    if not units:
        raise DataError("there is no document in it", file=corpus.folder)
    discard_torn(work.out)
    with workers.Pool(engine, processes) as pool:
        results = pool.run(
            ruling.clean_shard,
            units,
            ledger=work.out / LEDGER,
            stamp=corpus.hash,
            on_done=lambda done, _: work.progress(done, len(units), "shards"),
        )
    removed = _removed(results)
    told = ", ".join(f"{count} by {rule}: {reason}" for (rule, reason), count in removed.most_common(4))
    work.info.update(assemble(work.out, results, f"no document is left after cleaning ({told})", "loosen or leave out the rules named here"))
    changed: Counter[str] = Counter()
    for result in results:
        changed.update(result["changed"])
    work.info.update(documents_before=work.info["documents"] + removed.total(), changed=dict(sorted(changed.items())), removed=_nested(results))
    files.write_json(work.out / "removed.json", _samples(results))
    return None  # type: ignore[return-value]  # the runner seals and opens it


def _removed(results: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for result in results:
        for rule, reason, _, documents, _ in result["removed"]:
            found[rule, reason] += documents
    return found


def _nested(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """rule -> reason -> domain -> documents and bytes."""
    found: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for result in results:
        for rule, reason, domain, documents, size in result["removed"]:
            entry = found.setdefault(rule, {}).setdefault(reason, {}).setdefault(domain, {"documents": 0, "bytes": 0})
            entry["documents"] += documents
            entry["bytes"] += size
    return {rule: {reason: dict(sorted(inner.items())) for reason, inner in sorted(reasons.items())} for rule, reasons in sorted(found.items())}


def _samples(results: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, str]]]]:
    """rule -> reason -> the first few removed documents of the corpus."""
    found: dict[str, dict[str, list[dict[str, str]]]] = {}
    for result in results:
        for rule, reason, sample in result["samples"]:
            shown = found.setdefault(rule, {}).setdefault(reason, [])
            if len(shown) < ruling.SAMPLES:
                shown.append(sample)
    return {rule: dict(sorted(reasons.items())) for rule, reasons in sorted(found.items())}
