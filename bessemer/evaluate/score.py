"""How likely a model finds tokens: nats by token, the full logits never held."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bessemer.core.batch import Batch

CHUNK_ELEMENTS = 1 << 22
"""Logits formed at a time."""


class Scores(NamedTuple):
    """What a model makes of the targets of a batch.

    Attributes:
        nats: float64 [rows, length], -log p(target), 0 where the weight is 0.
        top: bool [rows, length], whether the target is the most likely token; False where the weight is 0.
    """

    nats: Tensor
    top: Tensor


def score(model: nn.Module, batch: Batch) -> Scores:
    """Scores the targets whose weight `next_token` is not 0; the caller has put the model at rest.

    Logits are read in float32 and sums are left to the caller, who makes them in float64.
    """
    if batch.targets is None:
        raise ValueError("a batch without targets can't be scored")
    outputs = model(batch)
    wanted = batch.weights["next_token"] != 0
    hidden, targets = outputs.hidden[wanted], batch.targets[wanted]
    nats = torch.zeros(wanted.shape, dtype=torch.float64, device=hidden.device)
    top = torch.zeros_like(wanted)
    if not len(targets):
        return Scores(nats, top)
    found, best = [], []
    size = max(1, CHUNK_ELEMENTS // int(model.vocabulary))  # type: ignore[arg-type]
    for start in range(0, len(targets), size):
        logits = outputs.head(hidden[start : start + size]).float()
        target = targets[start : start + size, None]
        found.append(logits.logsumexp(-1) - logits.gather(-1, target)[:, 0])
        best.append(logits.argmax(-1) == target[:, 0])
    nats[wanted] = torch.cat(found).double()
    top[wanted] = torch.cat(best)
    return Scores(nats, top)
