"""Matrices made orthogonal by polynomials of themselves, with as few products as that takes.

On a processor the work is in products of symmetric matrices, of which half the numbers suffice; and where it pays a matrix longer than wide is
multiplied only at the beginning of several steps, for its Gram matrix, and at their end, since every polynomial between is one of the Gram matrix.
A few matrices at a time, so that they stay in the cores' caches. Elsewhere all matrices of a shape go through batched products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

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


class Ways(NamedTuple):
    """How a processor does it.

    Attributes:
        steps: how many may go through one Gram matrix.
        parts: bfloat16 parts of a number (core/products.py) where they do, whose small singular values the Gram matrix squares.
        rough: parts everywhere else.
    """

    steps: int
    parts: int
    rough: int


EXACTLY = Ways(steps=1000, parts=3, rough=2)
"""Through one Gram matrix in all, two parts would lose five thousandths of the result where three lose four ten-thousandths."""
ROUGHLY = Ways(steps=1, parts=1, rough=1)
"""On vectors, which do one part twice as fast as float32: it loses one to four hundredths, as torch's own iteration does. Already two steps through one
Gram matrix would lose a tenth, since rounding leaves what should be symmetric a little less so."""


def coefficients(steps: int, polynomial: Polynomial) -> Coefficients:
    """Those of every step."""
    if polynomial == "published":
        return [PUBLISHED] * steps
    return [MINIMAX[min(step, len(MINIMAX) - 1)] for step in range(steps)]


def orthogonalise(matrices: Tensor, steps: int, polynomial: Polynomial = "minimax") -> Tensor:
    """The nearest semi-orthogonal matrices, roughly.

    Args:
        matrices: [count, outputs, inputs], of any floating type; computed in the type an accelerator multiplies
            fastest, on a processor in float32 or as `Ways` says.
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
    if first.is_cpu and first.dtype == torch.float32 and min(outputs, inputs) >= SMALL and series:
        ways = ROUGHLY if products.units() == "vectors" else EXACTLY
        stretch = _stretch(max(outputs, inputs) / min(outputs, inputs), steps, ways.steps)
        together = min(2 * torch.get_num_threads(), len(matrices))
        side, length = sorted((outputs, inputs))
        rooms = first.new_empty(5, together, side, side), first.new_empty(2, together, side, length)
        for begin in range(0, len(matrices), together):
            some = slice(begin, begin + together)
            _iterate(matrices[some], series, places[some], rate, stretch, ways, rooms)
        return
    x = torch.stack(list(matrices))
    x = x.mT if outputs > inputs else x
    kind = torch.float32 if first.is_cpu else device.compute_dtype()  # on a processor small ones gain nothing from rounding
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)).to(kind)
    for a, b, c in series:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    for place, update in zip(places, x.mT if outputs > inputs else x, strict=True):
        place.sub_(update, alpha=rate)


def _stretch(aspect: float, steps: int, most: int) -> int:
    """How many steps should go through one Gram matrix: one, or as many as may."""

    def cost(stretch: int) -> float:
        symmetric = math.ceil(steps / stretch) * (aspect - 3) + 4 * steps
        return SYMMETRIC * symmetric + math.ceil(steps / stretch) * aspect

    return min(1, min(most, steps), key=cost)


def _iterate(
    matrices: Sequence[Tensor], series: Coefficients, places: Sequence[Tensor], rate: float, stretch: int, ways: Ways, rooms: tuple[Tensor, Tensor]
) -> None:
    """x <- p(G) x with p(G) = a + b G + c G^2 and G = x x^T, some steps at a time: Q, the product of their polynomials, and what G becomes are
    polynomials of the first G, so they commute and stay symmetric. The last x is subtracted from the places. Sides are taken so that G is the smaller.

    Args:
        stretch: steps at a time.
        rooms: to work in, [5, matrices, shorter side, shorter side] and [2, matrices, shorter side, longer side], or more matrices.
    """
    wide, norms = _wide(matrices), _norms(matrices)
    grams, polynomials, halves, wholes, spares = rooms[0][:, : len(wide)]
    stretches = [series[start : start + stretch] for start in range(0, len(series), stretch)]
    x, scale = wide, [1.0 / norm for norm in norms]
    for number, some in enumerate(stretches, start=1):
        parts = ways.parts if len(some) > 1 else ways.rough
        _gram(x, grams, scale, parts)
        for step, (a, b, c) in enumerate(some, start=1):
            to = wholes if step == 1 else polynomials
            _square(grams, to, b, c, parts)
            to.diagonal(dim1=1, dim2=2).add_(a)
            if step < len(some):
                _symmetric(grams, to, halves, parts)
                _symmetric(halves, to, grams, parts)
            if step > 1:
                _symmetric(polynomials, wholes, spares, parts)
                wholes, spares = spares, wholes
        if number == len(stretches):
            _subtract(wholes, x, places, [rate * s for s in scale], ways.rough)
            return
        room = rooms[1][number % 2, : len(wide)]
        multiply([Product(q, m, to, alpha=s, parts=ways.rough) for q, m, to, s in zip(wholes, x, room, scale, strict=True)])
        x, scale = list(room), [1.0] * len(wide)


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


def _symmetric(a: Tensor, b: Tensor, out: Tensor, parts: int) -> None:
    """a b, of matrices that commute and are symmetric."""
    multiply([Product(*each, symmetric=True, parts=parts) for each in zip(a, b, out, strict=True)])


def _subtract(polynomials: Tensor, wide: Sequence[Tensor], places: Sequence[Tensor], rates: Sequence[float], rough: int) -> None:
    """place -= rate p x, or x p where the place is tall."""
    steps = []
    for p, x, place, rate in zip(polynomials, wide, places, rates, strict=True):
        a, b = (p, x) if x.shape == place.shape and x.stride(1) == 1 else (x.mT, p)
        steps.append(Product(a, b, place, plus=place, alpha=-rate, parts=rough))
    multiply(steps)
