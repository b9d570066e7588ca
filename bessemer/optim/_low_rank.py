"""Adam on projections: what GaLore, Fira and APOLLO share."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bessemer.core.products import Product, Scratch, fast, multiply
from bessemer.core.registry import Auto
from bessemer.optim import _fused
from bessemer.optim._blocks import Packed, States, stored_bytes
from bessemer.optim._matrices import Matrix, matrices, shapes
from bessemer.optim._rule import CHUNK, Group, Products, Rule, gradients, sweep

MOMENTS = ("exp_avg", "exp_avg_sq")
TOGETHER = 1 << 20
"""Numbers of projected gradients worked on at a time, several matrices for each core, where products are done many at once."""


class LowRank(Rule):
    """Adam on gradients projected to a low rank; parameters with less than two dimensions, or no wider than the rank, get plain AdamW.

    The bias correction is on the step, epsilon is added to the uncorrected root, and weight decay comes after the update, as in the
    authors' code of all three.
    """

    elementwise = False
    per_number = False

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float,
        betas: list[float],
        eps: float,
        rank: int | Auto,
        refresh: int,
        states: States,
        products: Products,
    ) -> None:
        self.betas, self.eps, self.rank, self.refresh, self.products = betas, eps, rank, refresh, products
        super().__init__(params, lr, weight_decay, states)

    def projects(self, rows: int, columns: int) -> bool:
        """Whether a matrix of this shape is projected."""
        return min(rows, columns) > self.rank_of(rows, columns)

    def rank_of(self, rows: int, columns: int) -> int:
        """The rank that a matrix of this shape is projected to: as given, or a quarter of its shorter side."""
        return max(1, min(rows, columns) // 4) if self.rank == "auto" else self.rank

    def correction(self, step: int) -> float:
        """sqrt(1 - b2^t) / (1 - b1^t)."""
        return math.sqrt(1.0 - self.betas[1] ** step) / (1.0 - self.betas[0] ** step)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """Plain AdamW for what is not projected, and `move` for batches of what is."""
        for step, stepping in self.counted(members):
            self.plain(group, step, [p for p in stepping if p.ndim < 2])
            batch: list[Matrix] = []
            size, most = 0, self.together()
            for matrix in chain.from_iterable(self.matrices(group, stepping)):
                if not self.projects(*matrix.weight.shape):
                    self.plain_matrix(group, step, matrix)
                    continue
                low = self.rank_of(*matrix.weight.shape) * max(matrix.weight.shape)
                if batch and size + low > most:
                    self.move(group, step, batch)
                    batch, size = [], 0
                batch.append(matrix)
                size += low
            if batch:
                self.move(group, step, batch)

    def together(self) -> int:
        """Numbers of projected gradients that `move` is given at a time, unless one matrix has more."""
        return sys.maxsize if self.chained else TOGETHER if fast() else CHUNK

    @property
    def chained(self) -> bool:
        """Whether each piece of a matrix is one core's from its projection on."""
        return False

    def lowered(self, matrix: Matrix, basis: Tensor, span: slice) -> tuple[Scratch, Product, Tensor, Tensor]:
        """A span of a gradient at low rank, the product that makes it, as coarse as `project`'s, and the moments there."""
        gradient, tall, rank = matrix.piece(matrix.gradient, span), matrix.tall, basis.shape[1]
        (rows, columns), (high, wide) = matrix.gradient.shape, gradient.shape
        for key in MOMENTS:
            if key not in matrix:
                matrix[key] = gradient.new_zeros((rows, rank) if tall else (rank, columns))
        low = Scratch(0, *((high, rank) if tall else (rank, wide)))
        product = Product(*((gradient, basis) if tall else (basis.mT, gradient)), low, parts=2)
        first, second = (matrix.piece(matrix[key], span) for key in MOMENTS)
        return low, product, first, second

    def matrices(self, group: Group, members: list[Tensor]) -> Iterable[list[Matrix]]:
        """Those of each member with two or more dimensions."""
        return (found for _, found in matrices(group, members, self.state))

    def move(self, group: Group, step: int, batch: list[Matrix]) -> None:
        """The rule, for some matrices whose projections fit in the cache together."""
        raise TypeError(f"{type(self).__name__} has no move")

    def project(self, batch: list[Matrix], bases: list[Tensor]) -> list[Tensor]:
        """The gradients at low rank, [m, r] of a tall matrix and [r, n] of a wide one; each basis is [shorter side, r].

        What Adam makes of them is a thousandth of the weights, so products may be that much coarser than float32 (2^-17 of the gradient's spread).
        """
        lows: list[Tensor] = []
        products = []
        for matrix, basis in zip(batch, bases, strict=True):
            a, b = (matrix.gradient, basis) if matrix.tall else (basis.mT, matrix.gradient)
            lows.append(a.new_empty(a.shape[0], b.shape[1]))
            products.append(Product(a, b, lows[-1], parts=2))
        multiply(products)
        return lows

    def adam(self, batch: list[Matrix], lows: list[Tensor]) -> list[Tensor]:
        """Adam's directions for gradients at low rank."""
        first, second = ([m.moment(key, low, self.states, key == "exp_avg") for m, low in zip(batch, lows, strict=True)] for key in MOMENTS)
        return self.directions(lows, first, second)

    def directions(self, slopes: list[Tensor], first: Sequence[Tensor | Packed], second: Sequence[Tensor | Packed]) -> list[Tensor]:
        """Adam's uncorrected m / (sqrt(v) + eps) after both moments took the gradients in."""
        out = [torch.empty_like(slope) for slope in slopes]
        if _fused.elementwise("directions", (out, slopes, first, second), [1.0 - self.betas[0], self.betas[1], 1.0 - self.betas[1], self.eps]):
            return out

        def move(o: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
            self.moments(g, m, v)
            root = torch._foreach_sqrt(v)
            torch._foreach_add_(root, self.eps)
            torch._foreach_copy_(o, m)
            torch._foreach_div_(o, root)

        sweep(move, out, slopes, first, second)
        return out

    def moments(self, g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
        """m and v take the gradients in."""
        torch._foreach_lerp_(m, g, 1.0 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, g, g, value=1.0 - self.betas[1])

    def plain(self, group: Group, step: int, members: list[Tensor]) -> None:
        """AdamW for whole parameters."""
        size, shrink = group["lr"] * self.correction(step), 1.0 - group["lr"] * group["weight_decay"]

        def move(p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
            self.moments(g, m, v)
            root = torch._foreach_sqrt(v)
            torch._foreach_add_(root, self.eps)
            torch._foreach_addcdiv_(p, m, root, value=-size)
            torch._foreach_mul_(p, shrink)

        sweep(move, members, gradients(members), self.column(members, "exp_avg"), self.column(members, "exp_avg_sq", signed=False))

    def plain_matrix(self, group: Group, step: int, matrix: Matrix) -> None:
        """AdamW for a matrix that is not projected."""
        update = self.adam([matrix], [matrix.gradient.contiguous()])[0]
        matrix.weight.add_(update, alpha=-group["lr"] * self.correction(step)).mul_(1.0 - group["lr"] * group["weight_decay"])

    def low_rank_bytes(self, shape: Any, width: int, parts: Any, held: int, per_matrix: int = 0) -> int:
        """Two moments of rank times the longer side, and `held` times rank times the shorter side and `per_matrix` bytes besides."""
        if len(shape) < 2:
            return 2 * self.column_bytes(torch.Size(shape).numel(), width)
        total = 0
        for rows, columns in shapes(shape, parts):
            if self.projects(rows, columns):
                rank = self.rank_of(rows, columns)
                total += 2 * stored_bytes(rank * max(rows, columns), self.states, width) + held * rank * min(rows, columns) + per_matrix
            else:
                total += 2 * stored_bytes(rows * columns, self.states, width)
        return total


def channel_norms(found: Sequence[Tensor]) -> list[Tensor]:
    """Norms of each matrix's channels, which are the rows of one that is taller than wide or square: [rows, 1], or [1, columns]."""
    tall = [matrix.shape[0] >= matrix.shape[1] for matrix in found]
    out = [matrix.new_empty((len(matrix), 1) if rows else (1, matrix.shape[1])) for matrix, rows in zip(found, tall, strict=True)]
    if _fused.matrices("channel_norms", [{"gradient": matrix, "norms": norms} for matrix, norms in zip(found, out, strict=True)]):
        return out
    # torch's own norms are 20 times slower down the columns
    return [
        torch.linalg.vector_norm(m, dim=1, keepdim=True) if rows else m.square().sum(0, keepdim=True).sqrt_()
        for m, rows in zip(found, tall, strict=True)
    ]


def subtract(batch: Sequence[Matrix], factors: Sequence[Tensor], size: float, shrink: float) -> None:
    """weight <- shrink (weight - size factor gradient), with a factor for the matrix or one for each channel."""
    found = [{"weight": m.weight, "gradient": m.gradient, "factors": f} for m, f in zip(batch, factors, strict=True)]
    if _fused.matrices("scaled", found, int(factors[0].numel() > 1), size, shrink):
        return
    for matrix, factor in zip(batch, factors, strict=True):
        matrix.weight.addcmul_(matrix.gradient, factor, value=-size).mul_(shrink)


def norm_growth(batch: list[Matrix], norms: list[Tensor], limit: float) -> list[Tensor]:
    """What updates are divided by so that their norms grow by at most `limit` a step (Chen et al. 2024, Fira, equation 8).

    The norms let through are kept in the matrices' states; a matrix's first is let through as it is. Updates of zero don't count, or one of
    them (an expert without tokens, factors beside zeros) would hold back all that come after it for thousands of steps.
    """
    for matrix, norm in zip(batch, norms, strict=True):
        if "norm" not in matrix:
            matrix["norm"] = torch.zeros_like(norm)
    now, before = torch.stack(norms), torch.stack([matrix["norm"] for matrix in batch])
    grown = (now / (before + 1e-8)).clamp(min=limit) / limit
    divisors = torch.where(before > 0, grown, 1.0)
    torch._foreach_copy_([matrix["norm"] for matrix in batch], torch.where(now > 0, now / divisors, before).unbind())
    return list(divisors.unbind())
