"""Ulysses: from columns to heads and back by one all-to-all each (Jacobs et al. 2023, "DeepSpeed Ulysses")."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.parallel.context.plan import even


def to_heads(x: Tensor, group: Any) -> Tensor:
    """This rank's heads of all columns of the group: from [rows, heads, places, size] to [rows, own heads, places of all, size].

    Heads are dealt out as `even` says, neighbours together; columns come in order of the ranks. The gradient goes back the same way.
    """
    return _Exchange.apply(x, x.shape[1], True, group)


def to_columns(x: Tensor, heads: int, group: Any) -> Tensor:
    """The reverse, `heads` together."""
    return _Exchange.apply(x, heads, False, group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, there: bool, group: Any) -> Tensor:
        ctx.how = (heads, not there, group)
        return _there(x, heads, group) if there else _back(x, heads, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        heads, there, group = ctx.how
        return (_there if there else _back)(grads[0], heads, group), None, None, None


def _there(x: Tensor, heads: int, group: Any) -> Tensor:
    rows, _, places, size = x.shape
    counts = even(heads, group.size())
    mine = counts[group.rank()]
    sent = torch.cat([part.reshape(-1) for part in x.split(counts, 1)])
    each = rows * places * size
    found = x.new_empty(each * mine * group.size())
    dist.all_to_all_single(found, sent, [each * mine] * group.size(), [each * count for count in counts], group=group)
    return found.view(group.size(), rows, mine, places, size).permute(1, 2, 0, 3, 4).reshape(rows, mine, -1, size)


def _back(x: Tensor, heads: int, group: Any) -> Tensor:
    rows, mine, columns, size = x.shape
    counts, places = even(heads, group.size()), columns // group.size()
    sent = x.reshape(rows, mine, group.size(), places, size).permute(2, 0, 1, 3, 4).reshape(-1)
    each = rows * places * size
    found = x.new_empty(each * heads)
    dist.all_to_all_single(found, sent, [each * count for count in counts], [each * mine] * group.size(), group=group)
    parts = found.split([each * count for count in counts])
    return torch.cat([part.view(rows, count, places, size) for part, count in zip(parts, counts, strict=True)], 1)
