"""Which columns of a batch are of which modality, and feed-forward parts that each see their own columns alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bessemer.core.batch import Batch


class Kinds(NamedTuple):
    """The columns of a batch by modality.

    Attributes:
        order: int64 [rows x length], all columns, sorted by modality, text first.
        counts: how many columns each modality has, text first.
    """

    order: Tensor
    counts: list[int]


def kinds(batch: Batch, modalities: Sequence[str]) -> Kinds | None:
    """The columns of a batch; None where all hold text, or padding, which goes with the text.

    Args:
        modalities: streams of adapters.
    """
    held = [name for name in modalities if f"{name}_index" in batch.streams]
    if not held:
        return None
    which = torch.zeros_like(batch.tokens)
    for name in held:
        which = torch.where(batch.streams[f"{name}_index"] >= 0, list(modalities).index(name) + 1, which)
    flat = which.flatten()
    return Kinds(flat.argsort(stable=True), torch.bincount(flat, minlength=len(modalities) + 1).tolist())


@torch.compiler.disable  # type: ignore[untyped-decorator]  # how many columns are of which modality differs from batch to batch
def apart(parts: Sequence[nn.Module], x: Tensor, found: Kinds) -> Tensor:
    """x [rows, length, width] with each modality's columns gone through their own part, so each costs what it costs in a dense layer."""
    rows = x.flatten(0, 1).index_select(0, found.order)
    made = torch.cat([part(each) for part, each in zip(parts, rows.split(found.counts), strict=True) if len(each)])
    return torch.empty_like(made).index_copy(0, found.order, made).view_as(x)
