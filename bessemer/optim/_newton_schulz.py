"""Matrices made orthogonal by polynomials of themselves, with as few products as that takes.

On a processor in float32 the work is in products of symmetric matrices, of which half the numbers suffice; and a matrix longer than wide is
only multiplied at the beginning, for its Gram matrix, and at the end, since every polynomial between is one of the Gram matrix. Elsewhere
all matrices of a shape go through batched products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bessemer.core import device

Polynomial = Literal["minimax", "published"]
Coefficients = Sequence[tuple[float, float, float]]

PUBLISHED = (3.4445, -4.7750, 2.0315)
"""a x + b x^3 + c x^5 of Jordan et al. 2024, the same at every step: singular values end between 0.7 and 1.2, from 0.002 on after five."""
MINIMAX = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
    (1.9178, -1.2968, 0.3797),
    (1.875, -1.25, 0.375),
)
"""Of all quintics each is the nearest to 1 on the interval the ones before it leave, beginning with [0.003, 1] (Amsel et al. 2025, "The Polar
Express"; found by linear programming): singular values end between 0.8 and 1.2 after four. The last is repeated."""
SYMMETRIC = 0.7
"""What a symmetric product of four block rows takes of a whole one's time."""
SMALL = 192
"""Sides below this are cheaper in batches than one by one."""


def coefficients(steps: int, polynomial: Polynomial) -> Coefficients:
    """Those of every step."""
    if polynomial == "published":
        return [PUBLISHED] * steps
    return [MINIMAX[min(step, len(MINIMAX) - 1)] for step in range(steps)]


def orthogonalise(matrices: Tensor, steps: int, polynomial: Polynomial = "minimax") -> Tensor:
    """The nearest semi-orthogonal matrices, roughly.

    Args:
        matrices: [count, outputs, inputs], of any floating type; computed in the type this machine multiplies fastest.
        steps: polynomials applied, one after another.

    Returns:
        [count, outputs, inputs], each times sqrt(max(1, outputs / inputs)).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    factor = math.sqrt(max(1.0, matrices.shape[1] / matrices.shape[2]))
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(device.compute_dtype())
    series = coefficients(steps, polynomial)
    if x.is_cpu and x.dtype == torch.float32 and x.shape[1] >= SMALL and series:
        x = _one_by_one(x.contiguous(), series)
    else:
        for a, b, c in series:
            gram = torch.bmm(x, x.mT)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x) * factor


def _one_by_one(matrices: Tensor, series: Coefficients) -> Tensor:
    side, length = matrices.shape[1:]
    aspect, steps = length / side, len(series)
    whole = steps * (SYMMETRIC * aspect + SYMMETRIC + aspect)
    by_gram = SYMMETRIC * aspect + (4 * steps - 3) * SYMMETRIC + aspect
    rooms = list(matrices.new_empty(5, side, side))
    out = torch.empty_like(matrices)
    for x, to in zip(matrices, out, strict=True):
        if by_gram < whole:
            _by_gram(x, series, rooms, to)
        else:
            _whole(x, series, rooms, to)
    return out


def _whole(x: Tensor, series: Coefficients, rooms: list[Tensor], out: Tensor) -> None:
    """x <- (a + b G + c G^2) x with G = x x^T, step by step; the last into `out`."""
    gram, polynomial = rooms[:2]
    spare = torch.empty_like(x)
    for step, (a, b, c) in enumerate(series, start=1):
        symmetric(x, x.mT, gram)
        symmetric(gram, gram, polynomial, plus=gram, beta=b, alpha=c)
        to = out if step == len(series) else spare
        torch.addmm(x, polynomial, x, beta=a, out=to)
        x, spare = to, torch.empty_like(x) if step == 1 else x


def _by_gram(x: Tensor, series: Coefficients, rooms: list[Tensor], out: Tensor) -> None:
    """The same through Q, the product of all steps' polynomials of G: what commutes with G stays symmetric."""
    gram, polynomial, half, whole, spare = rooms
    symmetric(x, x.mT, gram)
    for step, (a, b, c) in enumerate(series, start=1):
        symmetric(gram, gram, polynomial, plus=gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        if step == 1:
            whole.copy_(polynomial)
        else:
            symmetric(polynomial, whole, spare)
            whole, spare = spare, whole
        if step < len(series):
            symmetric(gram, polynomial, half)
            symmetric(half, polynomial, gram)
    torch.mm(whole, x, out=out)


def symmetric(a: Tensor, b: Tensor, out: Tensor, plus: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> None:
    """out = alpha a b (+ beta plus), known to be symmetric: block rows from the diagonal on, and their mirror image.

    `plus` may be `out` itself. Small matrices, and those of an accelerator, are multiplied whole.
    """
    side = len(out)
    size = -(-side // 4) if side >= SMALL and out.is_cpu else side
    for start in range(0, side, size):
        rows = slice(start, start + size)
        if plus is None:
            torch.mm(a[rows], b[:, start:], out=out[rows, start:])
        else:
            torch.addmm(plus[rows, start:], a[rows], b[:, start:], beta=beta, alpha=alpha, out=out[rows, start:])
    for start in range(size, side, size):
        rows = slice(start, start + size)
        out[rows, :start] = out[:start, rows].mT
