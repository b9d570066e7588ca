"""A batch cut along its columns, and what its layers may ask of the columns that are elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from bessemer.core import collectives
from bessemer.core.batch import Batch
from bessemer.core.collectives import along
from bessemer.core.errors import RecipeError
from bessemer.parallel.context.exchange import to_columns, to_heads
from bessemer.parallel.context.plan import Plan, Span, layouts
from bessemer.parallel.context.ring import ring_attention

Method = Literal["auto", "ring", "ulysses", "both", "gather"]
SHORT = 8192
"""Columns up to which keys and values are gathered by everyone, where the method is left open."""


class Axis:
    """The ranks of the context axis, and how attention works across them.

    Made once, by all ranks of the group together.

    Args:
        group: the process group of the axis.
        method: "ring" passes keys and values around; "ulysses" exchanges columns for heads, which have to be enough; "both" does the second
            among neighbours and the first between them; "gather" gives every rank all keys and values; "auto" gathers for rows up to
            8,192 columns, then exchanges as widely as key heads allow and rings with what is left.
    """

    def __init__(self, group: Any, method: Method = "auto") -> None:
        self.group, self.method = group, method
        self.index, self.size, self.ranks = group.rank(), group.size(), along(group)
        self.members = dist.get_process_group_ranks(group)
        self._groups: dict[tuple[int, ...], Any] = {}

    def cut(self, batch: Batch) -> Batch:
        """This rank's columns of a batch that all ranks of the axis hold whole; an empty place counts as padding.

        Raises:
            RecipeError: something in the batch has no columns to cut.
        """
        rows, length = batch.tokens.shape
        plan = Plan(batch.segments, rows, length, self.size, batch.open)
        spread = Columns(plan, self, int(batch.positions.max()) + 1 if rows else 1, batch.tokens.device)
        whole = batch if batch.segments is not None else replace(batch, segments=torch.ones_like(batch.tokens))
        kept = {id(each) for each in (batch.samples, batch.sources)}
        named = {**batch.weights, **batch.streams}
        for name, value in named.items():
            if value.shape[:2] != (rows, length) or name.endswith("_index"):  # what an adapter lays into columns has places of its own
                problem = f"the stream '{name}' of shape {list(value.shape)} can't be cut along the columns, which ranks share"
                raise RecipeError(problem, key="mesh.context", mend="use the data or tensor axis with this task")
        return replace(whole.map(lambda value: value if id(value) in kept else spread.mine(value)), spread=spread)

    def layout(self, kv_heads: int, heads: int, length: int) -> tuple[int, int] | None:
        """(ring, exchange) sizes for layers of so many heads, or None where keys and values are gathered.

        Raises:
            RecipeError: there are fewer heads than ranks to exchange them.
        """
        if self.method == "gather" or (self.method == "auto" and length <= SHORT):
            return None
        if self.method == "ring":
            return self.size, 1
        if self.method == "ulysses":
            if heads < self.size:
                raise RecipeError(f"{heads} heads can't be exchanged by {self.size} ranks", key="parallel.context", mend="use ring, both or auto")
            return 1, self.size
        found = [each for each in layouts(self.size, heads if self.method == "both" else kv_heads) if self.method == "auto" or min(each) > 1]
        return found[0] if found else (self.size, 1)

    def groups(self, ring: int, exchange: int) -> tuple[Any, Any]:
        """The groups this rank rings and exchanges in; ranks that exchange are neighbours."""
        rings = [self.members[place::exchange] for place in range(exchange)]
        exchanges = [self.members[place * exchange : (place + 1) * exchange] for place in range(ring)]
        return self._group(rings[self.index % exchange]), self._group(exchanges[self.index // exchange])

    def _group(self, members: list[int]) -> Any:
        if len(members) == 1:
            return None
        if len(members) == self.size:
            return self.group
        if tuple(members) not in self._groups:
            self._groups[tuple(members)] = dist.new_group(members, use_local_synchronization=True)
        return self._groups[tuple(members)]


class Columns:
    """One batch's columns over the ranks of an axis: see `Spread` in models/layers/attention.py."""

    def __init__(self, plan: Plan, axis: Axis, longest: int, device: torch.device) -> None:
        self.plan, self.axis, self.longest, self.device = plan, axis, longest, device
        self._spans: dict[Any, Span] = {}
        self._held: dict[range, Tensor] = {}
        self._own = plan.columns[:, axis.index].to(device)
        self._inverse = plan.inverse.to(device)

    def mine(self, values: Tensor) -> Tensor:
        wide = torch.cat((values, torch.zeros_like(values[:, :1])), 1)
        return wide.gather(1, _wide(self._own, values))

    def whole(self, values: Tensor) -> Tensor:
        kind = torch.uint8 if values.dtype == torch.bool else values.dtype
        found = collectives.whole(values.detach().to(kind).contiguous(), 1, self.axis.ranks)
        return found.gather(1, _wide(self._inverse, found)).to(values.dtype)

    def total(self, values: Tensor) -> Tensor:
        return collectives.reduced(values, self.axis.ranks)

    @torch.compiler.disable
    def keys(self, key: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        return self.whole(key.transpose(1, 2)).transpose(1, 2), self._mask(window)

    @torch.compiler.disable
    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)
        layout = self.axis.layout(key.shape[1], query.shape[1], self.plan.length)
        if layout is None:
            return self._gathered(query, key, value, window)
        ring, exchange = layout
        if exchange == 1:
            return self._ringed(query, key, value, window, ring, exchange)
        heads = query.shape[1]
        _, group = self.axis.groups(ring, exchange)
        if key.shape[1] < exchange:
            key, value = (each.repeat_interleave(heads // key.shape[1], 1) for each in (key, value))
        kv_heads = key.shape[1]
        order = self._together(ring, exchange)
        parts = [to_heads(each, group) for each in (query.unflatten(1, (kv_heads, -1)).flatten(2, 3), key, value)]
        size, places = heads // kv_heads, query.shape[2]
        queries = parts[0].unflatten(2, (exchange, size, places)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        queries, keys, values = (each.gather(2, _along(order, each)) for each in (queries, parts[1], parts[2]))
        mixed = self._ringed(queries, keys, values, window, ring, exchange)
        back = order.argsort(1)
        mixed = mixed.gather(2, _along(back, mixed)).unflatten(1, (-1, size)).unflatten(3, (exchange, places)).transpose(2, 3).flatten(2, 4)
        return to_columns(mixed, kv_heads, group).unflatten(2, (size, places)).flatten(1, 2)

    def _ringed(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, ring: int, exchange: int) -> Tensor:
        """Ring attention of what each group of `exchange` ranks holds together, in order of the text."""
        group, _ = self.axis.groups(ring, exchange)
        here = _ranks(self.axis.index // exchange, exchange)
        return ring_attention(query, key, value, lambda other: self._span(here, _ranks(other, exchange), window), group)

    def _gathered(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        pair = collectives.gather(torch.cat((key, value), 1), 2, self.axis.ranks)
        keys, values = pair.gather(2, _along(self._inverse, pair)).chunk(2, 1)
        mask = self._mask(window)
        mask = mask | (~mask.any(-1, keepdim=True) & (torch.arange(self.plan.length, device=query.device) == 0))  # softmax over nothing is undefined
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1])

    def _mask(self, window: int | None) -> Tensor:
        """Which columns of the text this rank's may look at: bool [rows, 1, own columns, length], nothing where they are padding."""
        span = self._span(_ranks(self.axis.index, 1), range(self.axis.size), window)
        place = torch.arange(self.plan.length, device=self.device)
        return ((place >= span.first[..., None]) & (place < span.last[..., None]))[:, None]

    def _span(self, queries: range, keys: range, window: int | None) -> Span:
        name = (queries, keys, window)
        if name not in self._spans:
            self._spans[name] = self.plan.span(queries, keys, window).to(self.device)
        return self._spans[name]

    def _together(self, ring: int, exchange: int) -> Tensor:
        """Where each column in order of the text stands among those of the ranks that exchange, as they come."""
        ranks = _ranks(self.axis.index // exchange, exchange)
        if ranks not in self._held:
            self._held[ranks] = self.plan.columns[:, ranks.start : ranks.stop].flatten(1).argsort(dim=1, stable=True).to(self.device)
        return self._held[ranks]


def _ranks(group: int, size: int) -> range:
    return range(group * size, (group + 1) * size)


def _wide(index: Tensor, values: Tensor) -> Tensor:
    """An index of columns [rows, columns] for values [rows, length, ...]."""
    return index.view(*index.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])


def _along(index: Tensor, values: Tensor) -> Tensor:
    """An index of columns [rows, columns] for values [rows, heads, columns, size]."""
    return index[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
