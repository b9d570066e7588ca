"""Products along the tensor axis in pieces of the columns, so that one piece travels while another is computed (Wang et al. 2023, "Overlap communication with dependent computation via decomposition").

What is gathered or scattered, and how many bytes of it, is as without. Whether time is saved depends on the backend: one whose collectives
run beside the device's products (NCCL on a stream of its own) hides all but the first piece; gloo's run on the processor that computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.collectives import Along, padded
from bessemer.core.products import linear, product

_functional: Any = torch.ops._c10d_functional
_wait: Any = _functional.wait_tensor


def gather_product(x: Tensor, weight: Tensor, ranks: Along, pieces: int) -> Tensor:
    """The columns of all ranks times a weight of which each rank has some outputs.

    Args:
        x: [rows, columns, inputs], this rank's columns.
        weight: [outputs, inputs].

    Returns:
        [rows, columns of all ranks, outputs].
    """
    x, weight = _computed(x), _computed(weight)
    return _GatherProduct.apply(x, weight, ranks.size, ranks.name, min(pieces, x.shape[1]))


def product_scatter(x: Tensor, weight: Tensor, ranks: Along, pieces: int) -> Tensor:
    """A product with a weight of which each rank has some inputs, summed over the ranks; each gets its columns.

    Args:
        x: [rows, columns of all ranks, inputs].
        weight: [outputs, inputs].

    Returns:
        [rows, columns, outputs].
    """
    x, weight = padded(_computed(x), 1, ranks.size), _computed(weight)
    return _ProductScatter.apply(x, weight, ranks.size, ranks.name, min(pieces, x.shape[1] // ranks.size))


class _GatherProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, size: int, name: str, pieces: int) -> Tensor:
        found, whole = _gathered(x, weight, size, name, pieces)
        ctx.save_for_backward(whole, weight)
        ctx.how = (size, name, pieces)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        whole, weight = ctx.saved_tensors
        leaving = _scattered(grads[0], weight.T, *ctx.how)
        down = product(grads[0].flatten(0, 1).T, whole.flatten(0, 1))  # while they travel
        return _arrived(leaving), down, None, None, None


class _ProductScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, size: int, name: str, pieces: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (size, name, pieces)
        return _arrived(_scattered(x, weight, size, name, pieces))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        found, whole = _gathered(grads[0], weight.T, *ctx.how)
        return found, product(whole.flatten(0, 1).T, x.flatten(0, 1)), None, None, None


def _gathered(x: Tensor, weight: Tensor, size: int, name: str, pieces: int) -> tuple[Tensor, Tensor]:
    """The product with the columns of all ranks, and these: all pieces leave at once, each is multiplied as it arrives."""
    leaving = [_functional.all_gather_into_tensor(piece.contiguous(), size, name) for piece in x.tensor_split(pieces, 1)]
    found, wholes = [], []
    for each in leaving:
        piece = _wait(each).unflatten(0, (size, -1)).transpose(0, 1)  # [rows, ranks, columns of the piece, inputs]
        found.append(linear(piece, weight))
        wholes.append(piece)
    return torch.cat(found, 2).flatten(1, 2), torch.cat(wholes, 2).flatten(1, 2)


def _scattered(x: Tensor, weight: Tensor, size: int, name: str, pieces: int) -> list[Tensor]:
    """The pieces of the product's sum over ranks, on their way."""
    leaving = []
    for piece in x.unflatten(1, (size, -1)).tensor_split(pieces, 2):
        stacked = linear(piece, weight).transpose(0, 1).flatten(0, 1)
        leaving.append(_functional.reduce_scatter_tensor(stacked.contiguous(), "sum", size, name))
    return leaving


def _arrived(leaving: list[Tensor]) -> Tensor:
    return torch.cat([_wait(piece) for piece in leaving], 1)


def _computed(x: Tensor) -> Tensor:
    """In the type of autocast where that is on: inside a Function it is not."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
