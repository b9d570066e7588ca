"""Filling in the end of a text."""

from __future__ import annotations

import math
from typing import Any

from bessemer.evaluate.examples import read_examples, text_of
from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.likelihood import likelihoods
from bessemer.evaluate.subject import Subject


def cloze(subject: Subject, *, file: str, limit: int | None = None, rows: int = 16) -> dict[str, Figure]:
    """Predicting the last word, or a given span, of each text of a file (Paperno et al. 2016, "LAMBADA").

    `accuracy` counts the examples whose every target token is the model's first choice. `log_probability` is the mean over
    examples of a target's log-probability in nats, `bits_per_byte` that of all targets over their bytes.

    Args:
        file: JSONL with `context` and `target`, which follow each other as they stand, or with `text`, whose last word with
            the space before it is the target.
        limit: take only so many examples.
        rows: examples scored at once.

    Raises:
        DataError: the file or a line of it is not as it must be.
    """
    pairs = read_examples(file, _parse, subject.few(limit, 8))
    found = likelihoods(subject, pairs, rows=rows)
    ones, key = [1.0] * len(found), f"cloze/{file}"
    bits = [-each.log_probability / math.log(2) for each in found]
    return {
        "accuracy": ratio([float(each.greedy) for each in found], ones, subject.seed, key),
        "log_probability": ratio([each.log_probability for each in found], ones, subject.seed, key),
        "bits_per_byte": ratio(bits, [each.bytes for each in found], subject.seed, key, better="lower"),
    }


def _parse(table: dict[str, Any]) -> tuple[str, str]:
    if "target" in table or "context" in table:
        context, target = text_of(table, "context"), text_of(table, "target")
        if not target:
            raise ValueError("'target' is empty")
        return context, target
    text = text_of(table, "text").rstrip()
    before, space, word = text.rpartition(" ")
    if not before.strip() or not word:
        raise ValueError("'text' has no word before its last one")
    return before, space + word
