"""Telling pairs apart: cross-entropy of each item's partner among all of its group, over micro-batches and ranks alike.

A group is a fixed set of neighbouring samples that always meets in one micro-batch (`Objective.unit`), and its items are each
other's only negatives. So the loss and its gradient don't depend on how batches are cut. Ranks that share the rows of a
micro-batch gather one another's embeddings; each compares its own items with all of their group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.collectives import Along, gather


class Scale(nn.Module):
    """One learned factor of similarities, kept below 100 (Radford et al. 2021, "CLIP", section 2.5)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(1))
        self.axes, self.roles = {"log": ("none",)}, {"log": "vector"}
        self.initial = {"log": math.log(1.0 / temperature)}

    def forward(self) -> Tensor:
        return self.log.clamp(max=math.log(100.0)).exp()


def gathered(x: Tensor, ranks: Along) -> Tensor:
    """x [own rows, ...] of all ranks that share the micro-batch, in the order of its rows."""
    return gather(x, 0, ranks)


def groups(rows: int, unit: int, per_row: int, ranks: Along, device: torch.device) -> tuple[Tensor, Tensor]:
    """(own item, any item of the micro-batch) -> whether they are of one group, bool; and each own item's number among all: int64."""
    everyone = torch.arange(rows * ranks.size, device=device).repeat_interleave(per_row)
    first = ranks.index * rows * per_row
    mine = torch.arange(first, first + rows * per_row, device=device)
    return everyone[mine][:, None] // unit == everyone[None, :] // unit, mine


def pairing(similarity: Tensor, same: Tensor, mine: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over own items of the cross-entropy of their partner within the group, and of how often the partner comes first.

    Args:
        similarity: float32 [own items, all items], scaled.
        same, mine: from `groups`.
        weights: [own items].
    """
    logits = similarity.masked_fill(~same, float("-inf"))
    loss = F.cross_entropy(logits, mine, reduction="none")
    return (loss * weights).sum(), ((logits.argmax(-1) == mine) * weights).sum()


def pooled(states: Tensor, valid: Tensor) -> Tensor:
    """The mean of states [..., columns, width] over their valid columns, bool [..., columns]: float32 [..., width]."""
    weights = valid.float()[..., None]
    return (states.float() * weights).sum(-2) / weights.sum(-2).clamp(min=1.0)
