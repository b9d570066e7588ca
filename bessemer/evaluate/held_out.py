"""Bits per byte of held-out documents: every byte once, summed before anything is divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy
from torch import nn

from bessemer.data.held_out import held_out_batches
from bessemer.data.rows import Array
from bessemer.data.tokens import Tokens
from bessemer.evaluate.score import score
from bessemer.evaluate.subject import at_rest


class Sums(NamedTuple):
    """What documents cost: each array has one entry for each document, in the store's order.

    Attributes:
        document: int64, their numbers in the store.
        bits: float64, of all their scored tokens.
        bytes: float64, of their text in UTF-8.
        tokens: float64, scored.
    """

    document: Array
    bits: Array
    bytes: Array
    tokens: Array


def document_sums(
    model: nn.Module,
    tokens: Tokens,
    *,
    length: int,
    rows: int,
    domain: str | None = None,
    limit: int | None = None,
    on_tokens: Callable[[int], object] | None = None,
) -> Sums:
    """Scores held-out documents.

    Args:
        length: tokens of a row; longer documents are read in windows that overlap.
        rows: rows scored at once.
        domain: only this one.
        limit: take documents only until they have this many tokens.
        on_tokens: told how many tokens are scored so far.

    Raises:
        DataError: there is no held-out document.
    """
    tokens.check_vocabulary(int(model.vocabulary))  # type: ignore[arg-type]
    totals = numpy.zeros((3, len(tokens.lengths)))
    done = 0
    with at_rest(model) as device:
        for batch in held_out_batches(tokens, length=length, rows=rows, domain=domain, limit=limit):
            nats = score(model, batch.to(device)).nats.cpu().numpy().ravel()
            weights = batch.weights["next_token"].double().numpy().ravel()
            document = batch.streams["document"].numpy().ravel()
            counted = weights != 0
            for place, values in enumerate((nats * weights / math.log(2), batch.weights["bytes"].double().numpy().ravel(), weights)):
                totals[place] += numpy.bincount(document[counted], values[counted], minlength=totals.shape[1])
            done += int(counted.sum())
            if on_tokens is not None:
                on_tokens(done)
    scored = numpy.flatnonzero(totals[2])
    return Sums(scored, *totals[:, scored])


def held_out_bits_per_byte(model: nn.Module, tokens: Tokens, *, length: int, rows: int = 8, limit: int | None = None) -> dict[str, float]:
    """domain -> bits per byte of its held-out documents; domains without any are left out.

    Args:
        limit: take each domain's documents only until they have this many tokens.
    """
    found = {}
    for domain in tokens.domains:
        if len(tokens.documents("held_out", "domain", domain)):
            sums = document_sums(model, tokens, length=length, rows=rows, domain=domain, limit=limit)
            found[domain] = float(sums.bits.sum() / sums.bytes.sum())
    return found
