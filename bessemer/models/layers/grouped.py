"""Products of many matrices with their own rows each: what a layer of experts computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core import device


def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows of x times the transposed matrix of their group.

    One kernel for all groups where the device has it, else one product after the other; to the compiler one operator either way.

    Args:
        x: [rows, inputs], sorted by group; every row belongs to one.
        weight: [groups, outputs, inputs].
        counts: int64 [groups], rows of each group; some may be 0.

    Returns:
        [rows, outputs], in the type of autocast where that is on.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, weight = x.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
    return _product(x, weight, counts)


@torch.library.custom_op("bessemer::grouped_product", mutates_args=())
def _product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if _one_kernel(x, weight):
        return F.grouped_mm(x, weight.mT, offs=counts.cumsum(0, dtype=torch.int32))
    out = x.new_empty(x.shape[0], weight.shape[1])
    for rows, matrix, into in zip(x.split(counts.tolist()), weight, out.split(counts.tolist()), strict=True):
        torch.mm(rows, matrix.T, out=into)
    return out


@torch.library.custom_op("bessemer::grouped_outer", mutates_args=())
def _outer(grad: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """The gradient of each group's matrix: [groups, outputs, inputs]."""
    if _one_kernel(grad, x):
        return F.grouped_mm(grad.mT, x, offs=counts.cumsum(0, dtype=torch.int32))
    out = x.new_empty(counts.shape[0], grad.shape[1], x.shape[1])
    for above, below, into in zip(grad.split(counts.tolist()), x.split(counts.tolist()), out, strict=True):
        torch.mm(above.T, below, out=into)
    return out


def _one_kernel(a: Tensor, b: Tensor) -> bool:
    aligned = a.shape[-1] % 8 == b.shape[-1] % 8 == 0 and a.is_contiguous() and b.is_contiguous()
    return aligned and a.shape[0] > 0 and device.has_grouped_products(a.dtype)


@_product.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_outer.register_fake
def _(grad: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], grad.shape[1], x.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, counts = ctx.saved_tensors
    grad = grad.contiguous()
    down = _product(grad, weight.mT.contiguous(), counts) if ctx.needs_input_grad[0] else None
    return down, _outer(grad, x, counts) if ctx.needs_input_grad[1] else None, None


_product.register_autograd(_backward, setup_context=_remember)


class ExpertLinear(nn.Module):
    """One product for each expert, their weights stacked: [experts, outputs, inputs].

    Attributes:
        axes, roles, parts, residual: as in `Linear`; parts are rows of each expert's own matrix.
        held: how the experts that are computed here are taken from a weight spread over ranks; None: all of it is here.
    """

    def __init__(
        self, experts: int, inputs: int, outputs: int, *, axes: tuple[str, str], parts: tuple[int, ...] = (), residual: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.axes, self.roles = {"weight": ("experts", *axes)}, {"weight": "matrix"}
        self.parts, self.residual = parts or (outputs,), residual
        self.held: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x: [rows, inputs] sorted by expert, counts: int64 [experts]; to [rows, outputs]."""
        return grouped_product(x, self.weight if self.held is None else self.held(self.weight), counts)
