"""Many products of matrices at once, and of those that are symmetric only half.

On processors with tile units (`_products.c`) each core takes whole products, and float32 factors are split into bfloat16 parts, as many as
torch's float32 matmul precision asks for: "highest" three, which is float32; "high" two; "medium" one. Elsewhere torch multiplies.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bessemer.core import native

PARTS = {"highest": 3, "high": 2, "medium": 1}
"""bfloat16 parts of a float32 number, by torch's float32 matmul precision."""
ENOUGH = 1 << 20
"""Multiplications from which on a product is worth packing."""
SMALL = 192
"""Symmetric products with sides below this are cheaper whole, where torch multiplies."""


class Product(NamedTuple):
    """out = alpha a b (+ beta plus), for matrices.

    Attributes:
        plus: may be `out` itself.
        symmetric: the result is known to be.
    """

    a: Tensor
    b: Tensor
    out: Tensor
    plus: Tensor | None = None
    beta: float = 1.0
    alpha: float = 1.0
    symmetric: bool = False


def multiply(products: Sequence[Product], parts: int = 3) -> None:
    """Does all of them, in any order.

    Args:
        parts: at most so many; two miss float32 by 2^-17 of the factors' sizes, enough for what is added to weights a thousand times as large.
    """
    library = _library() if products else None
    if library is None or not all(map(_fits, products)):
        for product in products:
            _by_torch(product)
        return
    jobs = (_Job * len(products))(*map(_job, products))
    if not library.multiply_all(jobs, ctypes.c_long(len(products)), min(parts, PARTS[torch.get_float32_matmul_precision()])):
        raise MemoryError("no memory is left for packing matrices")


def fast() -> bool:
    """Whether this machine's tile units are used."""
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    library = native.build(Path(__file__).with_suffix(".c"))
    return library if library is not None and library.ready() else None


def _fits(product: Product) -> bool:
    tensors = [t for t in (product.a, product.b, product.out, product.plus) if t is not None]
    rows = all(t.stride(1) == 1 for t in tensors[2:])
    return (
        rows
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and t.dtype == torch.float32 for t in tensors)
        and all(1 in t.stride() for t in tensors[:2])
        and product.a.shape[0] * product.a.shape[1] * product.b.shape[1] >= ENOUGH
    )


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "plus", "out")),
        *((name, ctypes.c_long) for name in ("rows", "columns", "depth", "a_row", "a_depth", "b_depth", "b_column", "out_row", "plus_row")),
        *((name, ctypes.c_float) for name in ("alpha", "beta")),
        ("symmetric", ctypes.c_int),
    ]


def _job(product: Product) -> _Job:
    a, b, out, plus, beta, alpha, symmetric = product
    where = [t.data_ptr() if t is not None else None for t in (a, b, plus, out)]
    strides = (*a.stride(), *b.stride(), out.stride(0), plus.stride(0) if plus is not None else 0)
    return _Job(*where, len(a), b.shape[1], len(b), *strides, alpha, beta, symmetric)


def _by_torch(product: Product) -> None:
    a, b, out, plus, beta, alpha, symmetric = product
    side = len(out)
    size = -(-side // 4) if symmetric and side >= SMALL and out.is_cpu else side
    for start in range(0, side, size):
        rows = slice(start, start + size)
        columns = slice(start if symmetric else 0, None)
        to = out[rows, columns]
        if plus is None:
            torch.mm(a[rows], b[:, columns], out=to)
            if alpha != 1.0:
                to.mul_(alpha)
        else:
            torch.addmm(plus[rows, columns], a[rows], b[:, columns], beta=beta, alpha=alpha, out=to)
    for start in range(size, side, size):
        rows = slice(start, start + size)
        out[rows, :start] = out[:start, rows].mT
