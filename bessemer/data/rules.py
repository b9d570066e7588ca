"""Cleaning rules, one after another, over one shard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bessemer.core.registry import Choice
from bessemer.data.assemble import result_of
from bessemer.data.corpus import ShardWriter, as_documents, read_shard
from bessemer.data.document import Document

SAMPLES = 5
"""Removed texts kept for looking at, for each rule and reason."""
EXCERPT = 600


def clean_shard(*, shard: str, folder: str, index: int, rules: list[Choice]) -> dict[str, Any]:
    """A unit of work: applies the rules in order to every document of one shard and writes those that stay.

    Returns:
        the shard and counts, and
        {"removed": [[rule, reason, domain, documents, bytes], ...], "changed": {rule: documents},
        "samples": [[rule, reason, {"id", "source", "domain", "text"}], ...]}.
    """
    removed: Counter[tuple[str, str, str, str]] = Counter()
    changed: Counter[str] = Counter()
    samples: dict[tuple[str, str], list[dict[str, str]]] = {}
    with ShardWriter(Path(folder), f"{index:05d}", shard_bytes=1 << 62) as writer:
        for batch in read_shard(Path(shard)):
            for document in as_documents(batch):
                kept, rule, reason = apply(document, rules, changed)
                if kept is not None:
                    writer.add(kept)
                    continue
                removed[rule, reason, document.domain, "documents"] += 1
                removed[rule, reason, document.domain, "bytes"] += len(document.text.encode())
                shown = samples.setdefault((rule, reason), [])
                if len(shown) < SAMPLES:
                    shown.append({"id": document.id, "source": document.source, "domain": document.domain, "text": document.text[:EXCERPT]})
    counts = [[*key[:3], removed[*key[:3], "documents"], removed[*key[:3], "bytes"]] for key in sorted(removed) if key[3] == "documents"]
    listed = [[*key, sample] for key, shown in sorted(samples.items()) for sample in shown]
    return result_of(writer, removed=counts, changed=dict(changed), samples=listed)


def apply(document: Document, rules: list[Choice], changed: Counter[str] | None = None) -> tuple[Document | None, str, str]:
    """The document after all rules; or None with the rule and the reason that removed it.

    A rule with the tag `domains` sees only documents of these.
    """
    for rule in rules:
        domains = rule.tags.get("domains")
        if domains is not None and document.domain not in domains:
            continue
        found = rule(document)
        if isinstance(found, str):
            return None, rule.name, found
        if changed is not None and found is not document:
            changed[rule.name] += 1
        document = found
    return document, "", ""
