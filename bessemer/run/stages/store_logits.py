"""Tokens, model -> logits."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bessemer.core import device
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.core.work import Work
from bessemer.data.held_out import windows
from bessemer.data.layout import Layout, gather
from bessemer.data.sparse_logits import LogitsWriter, SparseLogits
from bessemer.data.tokens import Tokens
from bessemer.evaluate.subject import at_rest
from bessemer.models.package import Model

SMOKE_TOKENS = 20_000


def store_logits(work: Work, store: Tokens, teacher: Model, *, keep: int = 16, length: int | Auto = "auto", rows: int = 8) -> SparseLogits:
    """Reads the training text with a teacher once and keeps its likeliest tokens for every place (Wu et al. 2022, "TinyViT").

    Documents are read whole; longer ones than a row in windows that overlap by a quarter. An interrupted run begins anew.

    Args:
        keep: tokens kept for each place; each takes 4 bytes on the disk (6 with more than 65,536 tokens in the vocabulary).
        length: tokens of a row; auto: what the teacher is made for.
        rows: rows read at once.

    Raises:
        RecipeError: an option is out of its range.
    """
    model: Any = teacher.build().to(device.device())
    store.check_vocabulary(model.vocabulary)
    span = int(model.options["length"]) if length == "auto" else length
    if not 1 <= keep <= store.vocabulary:
        raise RecipeError(f"from 1 to {store.vocabulary} tokens can be kept, and {keep} is given", key=f"{work.name}.keep")
    if span < 2 or rows < 1:
        raise RecipeError(f"{rows} rows of {span} tokens can't be read", key=f"{work.name}.length")
    chosen, started, done = store.documents("train"), time.monotonic(), 0
    if work.smoke:
        chosen = chosen[: 1 + int(np.searchsorted(np.cumsum(store.lengths[chosen]), SMOKE_TOKENS))]
    packed, skip = windows(store.lengths[chosen], span, span // 4)
    table, total = replace(packed, document=chosen[packed.document]), int(store.lengths[chosen].sum())
    writer, kept = LogitsWriter(work.out, store, keep), 0.0
    with at_rest(model) as place, torch.no_grad():
        for first in range(0, table.count, rows):
            picked = np.arange(first, min(first + rows, table.count))
            batch, layout = gather(store, table, picked, places=True), Layout(table, picked)
            within = np.arange(layout.total) - np.repeat(layout.before, layout.size)
            fresh = layout.lay(within >= np.repeat(skip[layout.piece], layout.size), False, np.bool_)
            logs, ids = model(batch.to(place)).logits()[fresh.to(place)].float().log_softmax(-1).topk(keep, dim=-1)
            writer.put(batch.streams["place"][fresh].numpy(), ids.cpu().numpy(), logs.cpu().numpy())
            kept, done = kept + float(logs.exp().sum()), done + int(fresh.sum())
            work.progress(done, total, "tokens", rate=done / max(1e-9, time.monotonic() - started))
    writer.close()
    work.info |= {"tokens": done, "keep": keep, "probability_kept": round(kept / max(1, done), 4), "teacher": teacher.hash}
    return None  # type: ignore[return-value]  # the runner seals and opens it
