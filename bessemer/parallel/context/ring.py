"""Ring attention: keys and values travel around the ranks while each mixes the part at hand (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.parallel.context.blocks import Mixture, Slope, grouped
from bessemer.parallel.context.plan import Span

Spans = Callable[[int], Span]
"""What this rank's queries look at among the keys of rank i of the ring."""


def ring_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans, group: Any) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks of the group.

    Keys and values of the other ranks travel while those at hand are computed with. Backward they go round once more, with their
    gradients behind them, which every rank adds to, so no rank ever holds more than two ranks' keys.

    Args:
        query: [rows, heads, places, head].
        key, value: [rows, kv_heads, places, head]; the same number of places on every rank.
        group: None for this rank alone.
    """
    return _Ring.apply(query, key, value, spans, group)


class Ring:
    """Passes tensors on to the next rank."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.index: int = 0 if group is None else group.rank()
        self.size: int = 1 if group is None else group.size()

    def begin(self, tensor: Tensor) -> tuple[Tensor, list[Any]]:
        """Starts to send `tensor` to the next rank and to receive the one before's."""
        arriving = torch.empty_like(tensor)
        after, before = ((self.index + step) % self.size for step in (1, -1))
        sends = dist.P2POp(dist.isend, tensor, group=self.group, group_peer=after)
        takes = dist.P2POp(dist.irecv, arriving, group=self.group, group_peer=before)
        return arriving, dist.batch_isend_irecv([sends, takes])

    def source(self, step: int) -> int:
        """Whose tensor is here after so many steps."""
        return (self.index - step) % self.size


def wait(works: list[Any]) -> None:
    """Until what `Ring.begin` started has been done."""
    for work in works:
        work.wait()


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Spans, group: Any) -> Tensor:
        ring, pair = Ring(group), torch.stack((key, value))
        with torch.autocast(query.device.type, enabled=False):
            queries = grouped(query, key.shape[1])
            mixture = Mixture(queries)
            for step in range(ring.size):
                arriving, works = ring.begin(pair) if step + 1 < ring.size else (pair, [])
                mixture.add(queries, pair[0], pair[1], spans(ring.source(step)))
                wait(works)
                pair = arriving
        mixed = mixture.mixed.flatten(1, 2).to(query.dtype)
        ctx.save_for_backward(query, key, value, mixed, mixture.log_total)
        ctx.spans, ctx.ring = spans, ring
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mixed, log_total = ctx.saved_tensors
        ring, pair = ctx.ring, torch.stack((key, value))
        kv_heads = key.shape[1]
        slope = Slope(grouped(query, kv_heads), grouped(mixed, kv_heads), log_total, grouped(grads[0].contiguous(), kv_heads))
        sums = torch.zeros(pair.shape, dtype=torch.float32, device=pair.device)
        coming: Tensor = sums
        behind: list[Any] = []
        for step in range(ring.size):
            arriving, works = ring.begin(pair) if step + 1 < ring.size else (pair, [])
            mine = torch.zeros_like(sums)
            slope.add(pair[0], pair[1], ctx.spans(ring.source(step)), mine[0], mine[1])
            wait(behind)
            sums = coming + mine
            coming, behind = ring.begin(sums) if ring.size > 1 else (sums, [])
            wait(works)
            pair = arriving
        wait(behind)
        keys, values = coming.to(key.dtype).unbind()
        return slope.queries.flatten(1, 2).to(query.dtype), keys, values, None, None
