"""What ranks do together inside a forward pass: differentiable, traceable by the compiler, and the identity where there is one rank.

Each names both of its directions: what travels forward, and what its gradient does. Sharded dimensions are cut into equal pieces, the
last ones padded with zeros where the size doesn't divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

join_flat: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""torch's gathering of equal pieces into one tensor: (into, piece, group=), under its name from 2.13 on or before."""
scatter_flat: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""torch's sum of tensors of which each rank gets a piece: (into, whole, group=), under its name from 2.13 on or before."""


@dataclass(frozen=True)
class Along:
    """The ranks along some axes of the mesh, as a forward pass needs them.

    Attributes:
        size: how many there are.
        index: which of them this one is.
        name: of their process group, as torch's functional collectives know it; empty for one rank.
    """

    size: int = 1
    index: int = 0
    name: str = ""

    def piece(self, size: int) -> int:
        """Elements of one rank's piece of a dimension, padding counted."""
        return -(-size // self.size)

    def span(self, size: int) -> tuple[int, int]:
        """Where this rank's piece of a dimension begins and ends, padding not counted."""
        start = min(self.index * self.piece(size), size)
        return start, min(start + self.piece(size), size)


def along(group: Any) -> Along:
    """The ranks of a process group; None for this one alone."""
    return Along() if group is None else Along(group.size(), group.rank(), group.group_name)


def gather(x: Tensor, dim: int, ranks: Along) -> Tensor:
    """All ranks' pieces joined along `dim`; the gradients of all ranks are summed and each gets its piece of the sum."""
    return x if ranks.size == 1 else _Gather.apply(x, dim, ranks.size, ranks.name)


def scatter_sum(x: Tensor, dim: int, ranks: Along) -> Tensor:
    """The sum of all ranks' x, each getting its piece along `dim`; gradients are gathered. The reverse of `gather`."""
    return x if ranks.size == 1 else _ScatterSum.apply(padded(x, dim, ranks.size), dim, ranks.size, ranks.name)


def own(x: Tensor, dim: int, ranks: Along) -> Tensor:
    """This rank's piece along `dim` of an x that is the same on all ranks; the gradients of the pieces are joined."""
    if ranks.size == 1:
        return x
    return _Own.apply(padded(x, dim, ranks.size), dim, ranks.size, ranks.index, ranks.name)


def whole(x: Tensor, dim: int, ranks: Along) -> Tensor:
    """All ranks' pieces joined along `dim`, for what all ranks then do alike: each takes its piece of the gradient. Reverse of `own`."""
    return x if ranks.size == 1 else _Whole.apply(x, dim, ranks.size, ranks.index, ranks.name)


def sum_forward(x: Tensor, ranks: Along) -> Tensor:
    """The sum of all ranks' x, for what all then do alike: the gradient passes as it is."""
    return x if ranks.size == 1 else _SumForward.apply(x, ranks.name)


def sum_backward(x: Tensor, ranks: Along) -> Tensor:
    """x, the same on all ranks, for what each then does of its own: the gradients are summed."""
    return x if ranks.size == 1 else _SumBackward.apply(x, ranks.name)


def reduced(x: Tensor, ranks: Along, how: str = "sum") -> Tensor:
    """The sum or maximum ("max") over the ranks; no gradient."""
    return x if ranks.size == 1 else _wait(_functional.all_reduce(x.detach().contiguous(), how, ranks.name))


def padded(x: Tensor, dim: int, count: int) -> Tensor:
    """x with zeros at the end of `dim`, so that `count` divides it."""
    missing = -x.shape[dim] % count
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim % x.ndim) + [0, missing]) if missing else x


_functional: Any = torch.ops._c10d_functional
_wait: Any = _functional.wait_tensor


def _joined(x: Tensor, dim: int, size: int, name: str) -> Tensor:
    found = _wait(_functional.all_gather_into_tensor(x.contiguous(), size, name))
    if dim % x.ndim == 0:
        return found
    return torch.cat(found.chunk(size), dim)


def _summed_piece(x: Tensor, dim: int, size: int, name: str) -> Tensor:
    stacked = x if dim % x.ndim == 0 else torch.cat(x.chunk(size, dim))
    return _wait(_functional.reduce_scatter_tensor(stacked.contiguous(), "sum", size, name))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, name: str) -> Tensor:
        ctx.how = (dim, size, name)
        return _joined(x, dim, size, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _summed_piece(grads[0], *ctx.how), None, None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, name: str) -> Tensor:
        ctx.how = (dim, size, name)
        return _summed_piece(x, dim, size, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _joined(grads[0], *ctx.how), None, None, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, index: int, name: str) -> Tensor:
        ctx.how = (dim, size, name)
        return x.chunk(size, dim)[index].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _joined(grads[0], *ctx.how), None, None, None, None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, index: int, name: str) -> Tensor:
        ctx.how = (dim, size, index)
        return _joined(x, dim, size, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        dim, size, index = ctx.how
        return grads[0].chunk(size, dim)[index].contiguous(), None, None, None, None


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        return _wait(_functional.all_reduce(x.contiguous(), "sum", name))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return grads[0], None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _wait(_functional.all_reduce(grads[0].contiguous(), "sum", ctx.name)), None
