"""Matrices made orthogonal by polynomials of themselves, with as few products as that takes.

On a processor the work is in products of symmetric matrices, of which half the numbers suffice; and where it pays a matrix longer than wide is
only multiplied at the beginning, for its Gram matrix, and at the end, since every polynomial between is one of the Gram matrix. A few matrices
at a time, so that they stay in the cores' caches. Elsewhere all matrices of a shape go through batched products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bessemer.core import device, products
from bessemer.core.products import SMALL, Product, multiply

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
"""What a symmetric product takes of a whole one's time."""
TINY = 1e-7
"""The least norm that is divided by."""
ROUGH, EXACT = 2, 3
"""bfloat16 parts of a number that suffice where errors don't grow, and where they do: through the Gram matrix, which squares small singular values,
two parts would lose five thousandths of the result where three lose four ten-thousandths."""
ROUGHEST = 1
"""The same on vectors, which do one part twice as fast as float32; torch's own iteration has one part too."""


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
    out = torch.zeros_like(matrices)
    subtract_orthogonal(list(out), list(matrices), -1.0, steps, polynomial)
    return out


def subtract_orthogonal(places: Sequence[Tensor], matrices: Sequence[Tensor], rate: float, steps: int, polynomial: Polynomial = "minimax") -> None:
    """Takes `rate` times what `orthogonalise` makes of each matrix from its place; all are [outputs, inputs]."""
    outputs, inputs = matrices[0].shape
    rate *= math.sqrt(max(1.0, outputs / inputs))
    series, first = coefficients(steps, polynomial), matrices[0]
    chosen = first.is_cpu and first.dtype == torch.float32 and (products.fast() or device.compute_dtype() == torch.float32)
    if chosen and min(outputs, inputs) >= SMALL and series:
        together, vectors = 2 * torch.get_num_threads(), products.units() == "vectors"
        by_gram = _gram_pays(max(outputs, inputs) / min(outputs, inputs), steps, exact=2.0 if vectors else 1.0)
        for begin in range(0, len(matrices), together):
            some = slice(begin, begin + together)
            (_by_gram if by_gram else _whole)(matrices[some], series, places[some], rate, ROUGHEST if vectors else ROUGH)
        return
    x = torch.stack(list(matrices))
    x = x.mT if outputs > inputs else x
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)).to(device.compute_dtype())
    for a, b, c in series:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    for place, update in zip(places, x.mT if outputs > inputs else x, strict=True):
        place.sub_(update, alpha=rate)


def _gram_pays(aspect: float, steps: int, exact: float) -> bool:
    """Whether all steps on the Gram matrix, whose products take `exact` times a rough one's time, cost less than all on the matrix."""
    return exact * SYMMETRIC * (aspect + 4 * steps - 3) + aspect < steps * (SYMMETRIC * aspect + SYMMETRIC + aspect)


def _whole(matrices: Sequence[Tensor], series: Coefficients, places: Sequence[Tensor], rate: float, rough: int) -> None:
    """x <- (a + b G + c G^2) x with G = x x^T, step by step; the last is subtracted from the places. Sides are taken so that G is the smaller."""
    wide, norms = _wide(matrices), _norms(matrices)
    side, length = wide[0].shape
    grams, polynomials = matrices[0].new_empty(2, len(wide), side, side)
    rooms = [list(matrices[0].new_empty(len(wide), side, length)) for _ in series[1:3]]
    x, scale = wide, [1.0 / norm for norm in norms]
    for step, (a, b, c) in enumerate(series, start=1):
        _gram(x, grams, scale, rough)
        _square(grams, polynomials, b, c, rough)
        polynomials.diagonal(dim1=1, dim2=2).add_(a)
        if step == len(series):
            _subtract(polynomials, x, places, [rate * s for s in scale], rough)
            return
        to = rooms[step % len(rooms)]
        multiply([Product(p, m, t, alpha=s, parts=rough) for p, m, t, s in zip(polynomials, x, to, scale, strict=True)])
        x, scale = to, [1.0] * len(wide)


def _by_gram(matrices: Sequence[Tensor], series: Coefficients, places: Sequence[Tensor], rate: float, rough: int) -> None:
    """The same through Q, the product of all steps' polynomials of G: what commutes with G stays symmetric."""
    wide, norms = _wide(matrices), _norms(matrices)
    side = len(wide[0])
    grams, polynomials, halves, wholes, spares = matrices[0].new_empty(5, len(wide), side, side)
    _gram(wide, grams, [1.0 / norm for norm in norms], EXACT)
    for step, (a, b, c) in enumerate(series, start=1):
        _square(grams, polynomials, b, c, EXACT)
        polynomials.diagonal(dim1=1, dim2=2).add_(a)
        if step == 1:
            wholes.copy_(polynomials)
        else:
            _symmetric(polynomials, wholes, spares)
            wholes, spares = spares, wholes
        if step < len(series):
            _symmetric(grams, polynomials, halves)
            _symmetric(halves, polynomials, grams)
    _subtract(wholes, wide, places, [rate / norm for norm in norms], rough)


def _wide(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Tall ones seen from the side."""
    return [m.mT if m.shape[0] > m.shape[1] else m for m in matrices]


def _norms(matrices: Sequence[Tensor]) -> list[float]:
    return [max(norm, TINY) for norm in torch.stack(torch._foreach_norm(list(matrices))).tolist()]


def _gram(x: Sequence[Tensor], out: Tensor, scale: Sequence[float], parts: int) -> None:
    """(s x) (s x)^T."""
    multiply([Product(m, m.mT, gram, alpha=s * s, symmetric=True, parts=parts) for m, gram, s in zip(x, out, scale, strict=True)])


def _square(grams: Tensor, out: Tensor, b: float, c: float, parts: int) -> None:
    """b G + c G^2."""
    multiply([Product(g, g, to, plus=g, beta=b, alpha=c, symmetric=True, parts=parts) for g, to in zip(grams, out, strict=True)])


def _symmetric(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a b, of matrices that commute and are symmetric."""
    multiply([Product(*each, symmetric=True) for each in zip(a, b, out, strict=True)])


def _subtract(polynomials: Tensor, wide: Sequence[Tensor], places: Sequence[Tensor], rates: Sequence[float], rough: int) -> None:
    """place -= rate p x, or x p where the place is tall."""
    steps = []
    for p, x, place, rate in zip(polynomials, wide, places, rates, strict=True):
        a, b = (p, x) if x.shape == place.shape and x.stride(1) == 1 else (x.mT, p)
        steps.append(Product(a, b, place, plus=place, alpha=-rate, parts=rough))
    multiply(steps)
