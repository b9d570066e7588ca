"""Corpus, tokenizer -> tokens."""

from __future__ import annotations

import time

from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus
from bessemer.data.store import write_store
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.data.workers import Engine

SMOKE_HELD_OUT = 0.1
"""Of the few documents of a smoke run, the share held out: enough for every domain to have one."""


def tokenize(
    work: Work,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    held_out: float = 0.01,
    shard_megabytes: int = 8,
    reuse: str | None = None,
    facts: list[str] = [],
    engine: Engine = "local",
    processes: int | Auto = "auto",
) -> Tokens:
    """Writes every document's tokens to a memory-mapped store, in parallel.

    An interrupted run continues with the shards it had finished.

    Args:
        held_out: the fraction of documents kept from training; by a hash of the text, so a document never changes side.
        shard_megabytes: text in one shard; raise it for corpora beyond some hundred gigabytes.
        reuse: an earlier store's folder: shards of the same text are copied from it, and only what is new is tokenized.
        facts: keys of the documents' metadata to keep for conditions (data/condition), such as "url", of which the host is kept.
        engine: "local" processes, or a "ray" cluster.
        processes: how many at once; "auto" is one per core.
    """
    if not 0 <= held_out < 1:
        raise RecipeError(f"a fraction from 0 to below 1 is wanted, and {held_out} is given", key="held_out")
    if shard_megabytes < 1:
        raise RecipeError(f"a shard has at least 1 megabyte, and {shard_megabytes} is given", key="shard_megabytes")
    if work.smoke and held_out:
        held_out = max(held_out, SMOKE_HELD_OUT)
    started, size = time.monotonic(), corpus.bytes

    def told(done: int, tokens: int) -> None:
        work.progress(done / 1e6, size / 1e6, "MB", tokens=tokens, rate=done / 1e6 / max(1e-9, time.monotonic() - started))

    work.info |= write_store(
        corpus,
        tokenizer,
        work.out,
        held_out=held_out,
        shard_megabytes=shard_megabytes,
        reuse=reuse,
        facts=facts,
        engine=engine,
        processes=processes,
        on_done=told,
    )
    made = Tokens(work.out, {"kind": Tokens.kind, "hash": "", "info": {}})
    work.info |= {"train": made.counts("train"), "held_out": made.counts("held_out")}
    empty = [name for name, count in work.info["held_out"].items() if not count["documents"]]
    if empty and held_out:
        work.note(f"no document of {', '.join(empty)} is held out; raise held_out to measure there")
    return None  # type: ignore[return-value]  # the runner seals and opens it
