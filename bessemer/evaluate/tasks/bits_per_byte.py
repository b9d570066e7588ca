"""Bits per byte of held-out documents, by domain."""

from __future__ import annotations

from typing import Literal

import numpy

from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import Auto
from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.held_out import document_sums
from bessemer.evaluate.subject import Subject


def bits_per_byte(subject: Subject, *, length: int | Auto = "auto", rows: int = 8, limit: int | Literal["all"] = 32768) -> dict[str, Figure]:
    """Bits needed for each UTF-8 byte of held-out documents, by domain (Gao et al. 2020, "The Pile", section 3.1).

    Comparable between tokenizers. Each byte counts once; nats and bytes are summed before they are divided. `all` is
    every domain's together. Intervals come from resampling documents.

    Args:
        length: tokens of a row: the model's context, at most 2048, by default. Longer documents are read in windows.
        rows: rows scored at once.
        limit: take each domain's documents only until they have this many tokens, or all.

    Raises:
        DataError: there is no token store, or it has no held-out document.
        RecipeError: a number is below 1.
    """
    if subject.tokens is None:
        raise DataError(
            "bits_per_byte reads held-out documents, and there is no token store",
            key="tokens",
            mend="add a tokenize stage before, or name its folder",
        )
    for name, value in (("length", length), ("rows", rows), ("limit", limit)):
        if isinstance(value, int) and value < 1:
            raise RecipeError(f"{value} is too small; it must be at least 1", key=f"bits_per_byte.{name}")
    wide = min(subject.context, 2048) if length == "auto" else min(length, subject.context)
    most = subject.few(None if limit == "all" else limit, 2048)
    domains = [name for name in subject.tokens.domains if len(subject.tokens.documents("held_out", "domain", name))]
    found = {}
    before = 0
    for domain in domains:

        def told(tokens: int, before: int = before) -> None:
            subject.progress(before + tokens, None, "tokens")

        sums = document_sums(subject.model, subject.tokens, length=wide, rows=rows, domain=domain, limit=most, on_tokens=told)
        before += int(sums.tokens.sum())
        if sums.bytes.sum() > 0:
            found[domain] = sums
    if not found:
        raise DataError("holds out no document", file=subject.tokens.folder, key="held_out", mend="raise tokenize.held_out or collect more text")
    figures = {name: ratio(s.bits, s.bytes, subject.seed, f"bits_per_byte/{name}", better="lower") for name, s in found.items()}
    if len(found) > 1:
        bits, sizes = (numpy.concatenate([getattr(s, part) for s in found.values()]) for part in ("bits", "bytes"))
        figures["all"] = ratio(bits, sizes, subject.seed, "bits_per_byte/all", better="lower")
    return figures
