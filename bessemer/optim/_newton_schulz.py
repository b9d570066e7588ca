"""Matrices made orthogonal by polynomials of themselves, with as few products as that takes.

On a processor the work is in products of symmetric matrices, of which half the numbers suffice. Where tiles multiply, a matrix much longer than wide
is multiplied only at the beginning of all steps, for its Gram matrix, and at their end, since every polynomial between is one of the Gram matrix; a few
matrices at a time, so that they stay in the cores' caches. Where vectors multiply bfloat16, `_orthogonal.c` takes a matrix through all its steps: it
loses one to five hundredths of the result, as torch's own iteration does. There already two steps through one Gram matrix would lose up to a
twentieth. Elsewhere all matrices of a shape go through batched products.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bessemer.core import device, native, products
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


PARTS, ROUGH = 3, 2
"""bfloat16 parts of a number (core/products.py): where steps go through one Gram matrix, which squares small singular values, and everywhere else. In
all, two parts there would lose five thousandths of the result where three lose four ten-thousandths."""


class Momentum(NamedTuple):
    """A running mean of gradients, and what of it is made orthogonal.

    Attributes:
        keep: of the mean, at every gradient.
        nesterov: look one step ahead: as much of the new mean with the rest from the gradient.
    """

    keep: float
    nesterov: bool

    def take(self, slopes: list[Tensor], means: list[Tensor]) -> list[Tensor]:
        """What is to be made orthogonal, after the means took the gradients in."""
        torch._foreach_lerp_(means, slopes, 1.0 - self.keep)
        return list(torch._foreach_lerp(means, slopes, 1.0 - self.keep)) if self.nesterov else means


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


def subtract_orthogonal(
    places: list[Tensor],
    matrices: list[Tensor],
    rate: float,
    steps: int,
    polynomial: Polynomial = "minimax",
    *,
    keep: float = 1.0,
    means: list[Tensor] | None = None,
    momentum: Momentum | None = None,
) -> None:
    """Takes `rate` times what `orthogonalise` makes of each matrix from `keep` times what is in its place; all are [outputs, inputs].

    Args:
        means: with `momentum`: what it makes of the matrices, which are gradients, and these means is taken.
    """
    outputs, inputs = matrices[0].shape
    rate *= math.sqrt(max(1.0, outputs / inputs))
    series, first = coefficients(steps, polynomial), matrices[0]
    large = first.is_cpu and first.dtype == torch.float32 and min(outputs, inputs) >= SMALL and bool(series)
    if large and products.units() == "vectors" and _on_vectors(places, matrices, rate, series, keep, means, momentum):
        return
    if means is not None and momentum is not None:
        matrices = momentum.take(matrices, means)
    if keep != 1.0:
        torch._foreach_mul_(places, keep)
    if large:
        together = min(2 * torch.get_num_threads(), len(matrices))
        side, length = sorted((outputs, inputs))
        rooms = first.new_empty(5, together, side, side), first.new_empty(2, together, side, length)
        stretch = _stretch(length / side, steps)
        for begin in range(0, len(matrices), together):
            some = slice(begin, begin + together)
            _iterate(matrices[some], series, places[some], rate, stretch, rooms)
        return
    x = torch.stack(matrices)
    x = x.mT if outputs > inputs else x
    kind = torch.float32 if first.is_cpu else device.compute_dtype()  # on a processor small ones gain nothing from rounding
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)).to(kind)
    for a, b, c in series:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    for place, update in zip(places, x.mT if outputs > inputs else x, strict=True):
        place.sub_(update, alpha=rate)


def _on_vectors(
    places: list[Tensor],
    matrices: list[Tensor],
    rate: float,
    series: Coefficients,
    keep: float,
    means: list[Tensor] | None,
    momentum: Momentum | None,
) -> bool:
    """The same by `_orthogonal.c`, if it can reach them all."""
    library = native.build(Path(__file__).with_name("_orthogonal.c"))
    columns: list[Sequence[Tensor | None]] = [matrices, means or [None] * len(matrices), places]
    if library is None or not all(t is None or (products.plain(t) and t.stride(1) == 1) for t in chain(*columns)):
        return False
    numbers = (ctypes.c_float * (3 * len(series)))(*chain(*series))
    lean = 1.0 - momentum.keep if momentum else 0.0
    lag = lean if momentum and momentum.nesterov else 0.0
    job = _JOB.pack(*matrices[0].shape, len(series), ctypes.addressof(numbers), rate, keep, lean, lag)
    given = b"".join(_MATRIX.pack(*map(_address, row), *map(_apart, row)) for row in zip(*columns, strict=True))
    if not library.orthogonalise_all(job, given, ctypes.c_long(len(matrices))):
        raise MemoryError("no memory is left for making matrices orthogonal")
    return True


def _address(matrix: Tensor | None) -> int:
    return 0 if matrix is None else matrix.data_ptr()


def _apart(matrix: Tensor | None) -> int:
    return 0 if matrix is None else matrix.stride(0)


_JOB, _MATRIX = struct.Struct("3qP4f"), struct.Struct("3P3q")
"""As `job` and `matrix` in `_orthogonal.c`."""


def _stretch(aspect: float, steps: int) -> int:
    """How many steps should go through one Gram matrix: one, or all."""

    def cost(stretch: int) -> float:
        symmetric = math.ceil(steps / stretch) * (aspect - 3) + 4 * steps
        return SYMMETRIC * symmetric + math.ceil(steps / stretch) * aspect

    return min(1, steps, key=cost)


def _iterate(
    matrices: Sequence[Tensor], series: Coefficients, places: Sequence[Tensor], rate: float, stretch: int, rooms: tuple[Tensor, Tensor]
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
        parts = PARTS if len(some) > 1 else ROUGH
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
            _subtract(wholes, x, places, [rate * s for s in scale])
            return
        room = rooms[1][number % 2, : len(wide)]
        multiply([Product(q, m, to, alpha=s, parts=ROUGH) for q, m, to, s in zip(wholes, x, room, scale, strict=True)])
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


def _subtract(polynomials: Tensor, wide: Sequence[Tensor], places: Sequence[Tensor], rates: Sequence[float]) -> None:
    """place -= rate p x, or x p where the place is tall."""
    steps = []
    for p, x, place, rate in zip(polynomials, wide, places, rates, strict=True):
        a, b = (p, x) if x.shape == place.shape and x.stride(1) == 1 else (x.mT, p)
        steps.append(Product(a, b, place, plus=place, alpha=-rate, parts=ROUGH))
    multiply(steps)
