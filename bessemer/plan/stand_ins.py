"""What stands in, on fake ranks, for what depends on numbers: where tokens go, and the plan of a batch's columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bessemer.core.batch import Batch
from bessemer.models.layers.experts import Compute, MixtureOfExperts, mixtures
from bessemer.parallel.context.columns import Axis, Columns
from bessemer.parallel.context.plan import Span
from bessemer.parallel.expert import Exchange, all_to_all


class Dealt(Axis):
    """A context axis whose plans are made of real numbers, though the layers' tensors have none."""

    def cut(self, batch: Batch) -> Batch:
        found = super().cut(batch)
        found.spread.__class__ = DealtColumns
        return found


class DealtColumns(Columns):
    """`Columns` that leaves the fake tensors aside while it plans."""

    def _span(self, queries: range, keys: range, window: int | None) -> Span:
        with unset_fake_temporarily():
            return super()._span(queries, keys, window)

    def _together(self, ring: int, exchange: int) -> Tensor:
        with unset_fake_temporarily():
            return super()._together(ring, exchange)


def even(model: nn.Module) -> None:
    """Has every layer of experts send and compute as many tokens as it would with its experts used as is wanted."""
    for layer in mixtures(model).values():
        layer.computed = _Share(layer)  # type: ignore[method-assign]
        if isinstance(layer.exchange, Exchange):
            layer.exchange = EvenExchange(layer.exchange.group, layer.exchange.split)


def told_apart(model: Any) -> None:
    """Has a model that works on modalities apart tell them apart by real numbers, though its tensors have none."""
    find = getattr(model, "kinds", None)

    def kinds(batch: Batch) -> Any:
        with unset_fake_temporarily():
            return find(batch)  # type: ignore[misc]

    if find is not None:
        model.kinds = kinds


class _Share:
    def __init__(self, layer: MixtureOfExperts) -> None:
        capacity = layer.router.capacity
        self.share = layer.real / layer.active * (1.0 if capacity is None else min(1.0, capacity))

    def __call__(self, order: Tensor, counts: Tensor) -> Tensor:
        return order[: round(len(order) * self.share)]


class EvenExchange(Exchange):
    """Sends every rank as many rows."""

    def __call__(self, rows: Tensor, counts: Tensor, compute: Compute) -> Tensor:
        size = self.group.size() // self.split
        sent: Any = counts.view(size, -1).repeat_interleave(self.split, 0)
        torch.distributed.all_to_all_single(torch.empty_like(sent), sent, group=self.group)
        cuts = [len(rows) * (index + 1) // size - len(rows) * index // size for index in range(size) for _ in range(self.split)]
        arrived = all_to_all(self.copied(rows, cuts), cuts, cuts, self.group)
        return self.summed(all_to_all(compute(arrived, sent.sum(0)), cuts, cuts, self.group), cuts)
