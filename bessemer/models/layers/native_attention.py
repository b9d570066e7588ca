"""Causal attention in float32 on processors with wide vectors: twice as fast as torch's flash kernels, two and a half times backward.

The kernel is `_attention.c`. It does the same products as torch's, skips later keys wholly, and holds all scores of 32 queries in
the second-level cache. Medians at 4 rows of 512 tokens, 8 heads of 64, two cores: 5.6 + 13.2 ms against 14.6 + 34.9 ms.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bessemer.core import device, native

BLOCK = 32
"""Lengths and head sizes are multiples of it."""


def fits(query: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel can take these; asked while compiling, for nothing can be differentiated through it twice."""
    if query.dtype != torch.float32 or query.shape[2] % BLOCK or query.shape[3] % BLOCK or not device.in_main_memory(query):
        return False
    return (mask is None or mask.shape[1] == 1) and _ready


_ready = False


def prepare() -> None:
    """Builds the kernel where it can be used, before anything that calls it is compiled: the compiler can't trace the building."""
    global _ready
    _ready = device.has_wide_vectors() and library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The kernel, or None where it can't be built."""
    return native.build(Path(__file__).with_name("_attention.c"), "-ffp-contract=fast", "-mprefer-vector-width=512")


def native_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention: query [rows, heads, length, size], key and value with a divisor of the heads; to the query's shape.

    Args:
        mask: bool [rows or 1, 1, length, length] that allows nothing beyond causal attention; None: just causal.
    """
    mixed, _ = _forward(query, key, value, mask)
    return mixed.transpose(1, 2)


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("row", ctypes.c_long), ("head", ctypes.c_long), ("step", ctypes.c_long))


def _view(tensor: Tensor) -> Any:
    return ctypes.byref(_View(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)))


def _place(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _sizes(query: Tensor, key: Tensor) -> list[Any]:
    rows, heads, length, size = query.shape
    return [rows, heads, heads // key.shape[1], length, size, ctypes.c_float(size**-0.5), torch.get_num_threads()]


def _dense(mask: Tensor | None) -> tuple[Tensor | None, ctypes.c_long]:
    """The mask with its last two dimensions in order, and how far its rows are apart."""
    if mask is None:
        return None, ctypes.c_long(0)
    length = mask.shape[-1]
    mask = mask if mask.stride()[2:] == (length, 1) else mask.contiguous()
    return mask, ctypes.c_long(mask.stride(0) if mask.shape[0] > 1 else 0)


def _last_together(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


@torch.library.custom_op("bessemer::causal_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """[rows, length, heads, size], and the log of each query's total [rows, heads, length]."""
    rows, heads, length, size = query.shape
    query, key, value = (_last_together(each) for each in (query, key, value))
    allowed, apart = _dense(mask)
    mixed, total = query.new_empty(rows, length, heads, size), query.new_empty(rows, heads, length)
    made: Any = library()
    made.attention_forward(_view(query), _view(key), _view(value), _place(allowed), apart, _place(mixed), _place(total), *_sizes(query, key))
    return mixed, total


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, heads, length, size = query.shape
    return query.new_empty(rows, length, heads, size), query.new_empty(rows, heads, length)


@torch.library.custom_op("bessemer::causal_attention_backward", mutates_args=())
def _backward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grad: Tensor, mixed: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients [rows, length, heads, size] of query, key and value; `grad` and `mixed` are laid out like them."""
    rows, heads, length, size = query.shape
    query, key, value, grad, mixed = (_last_together(each) for each in (query, key, value, grad.transpose(1, 2), mixed.transpose(1, 2)))
    allowed, apart = _dense(mask)
    found = [query.new_empty(rows, length, count, size) for count in (heads, key.shape[1], key.shape[1])]
    views, made = [_view(each) for each in (query, key, value, grad, mixed)], library()
    assert made is not None
    made.attention_backward(*views, _place(total.contiguous()), _place(allowed), apart, *map(_place, found), *_sizes(query, key))
    return found[0], found[1], found[2]


@_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grad: Tensor, mixed: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, length, size = query.shape
    first, second, third = (query.new_empty(rows, length, count, size) for count in (heads, key.shape[1], key.shape[1]))
    return first, second, third


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, mask, mixed, total = ctx.saved_tensors
    return *(each.transpose(1, 2) for each in _backward(query, key, value, mask, grad, mixed, total)), None


_forward.register_autograd(_differentiate, setup_context=_save)
