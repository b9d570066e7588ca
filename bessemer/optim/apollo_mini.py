"""APOLLO-Mini: APOLLO at rank 1, one factor a matrix."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from bessemer.core.ranges import Betas, Count, NonNegative, Positive
from bessemer.optim import _fused
from bessemer.optim._low_rank import MOMENTS
from bessemer.optim._matrices import Matrix, matrices
from bessemer.optim._rule import Group, Products
from bessemer.optim.apollo import Apollo


class ApolloMini(Apollo):
    """APOLLO at rank 1 with one factor for a whole matrix (Zhu et al. 2024).

    Claim: AdamW's perplexity or better at plain SGD's memory.
    State of an m x n matrix, m <= n: 2 n numbers of the parameter's type and one norm.

    Args:
        refresh: steps between projections.
        scale: of the update, its square root is applied.
        weight_decay: decoupled.
        seed: of the projections.
        products: what matrices are multiplied in.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1e-2,
        betas: Betas = [0.9, 0.999],
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        refresh: Count = 200,
        scale: Positive = 128.0,
        seed: int = 0,
        products: Products = "float32",
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            rank=1,
            refresh=refresh,
            scale=scale,
            by="tensor",
            seed=seed,
            products=products,
        )

    def advance(self, group: Group, members: list[Tensor]) -> None:
        """Moves what one kernel can judge and move while it is in the cache, and the rest as APOLLO does."""
        reached = [p for p in members if p.ndim >= 2 and _fused.reaches(p, p.grad)]  # type: ignore[arg-type]
        found = {p: of for p, of in matrices(group, reached, self.state) if all(self.projects(*m.weight.shape) for m in of)}
        if found:
            self._in_one_pass(group, found)
        super().advance(group, [p for p in members if p not in found])

    def _in_one_pass(self, group: Group, found: dict[Tensor, list[Matrix]]) -> None:
        lows = next(iter(found)).new_empty(sum(max(m.weight.shape) for of in found.values() for m in of))
        low = lows.data_ptr()
        jobs: list[list[bytes]] = []
        for p, of in found.items():
            step = self.state[p].get("step", 0) + 1
            size = math.sqrt(self.scale) * group["lr"] * self.correction(step)
            jobs.append([])
            for m in of:
                basis = self.projection(min(m.weight.shape), step, m.gradient)
                jobs[-1].append(_fused.slim_job((m.weight, m.gradient, basis, *self._kept(m)), low, m.weight.shape, size))
                low += max(m.weight.shape) * lows.element_size()
        lean, keep = 1.0 - self.betas[0], self.betas[1]
        numbers = lean, keep, 1.0 - keep, self.eps, 1.0 - group["lr"] * group["weight_decay"], self.limit
        for p, bad in zip(found, _fused.slim_steps(jobs, numbers), strict=True):
            if not bad:
                self.state[p]["step"] = self.state[p].get("step", 0) + 1
            elif "step" not in self.state[p]:
                del self.state[p]  # it never moved, and has nothing to keep

    def _kept(self, matrix: Matrix) -> tuple[Tensor, ...]:
        """Both moments and the last update's norm."""
        if MOMENTS[0] not in matrix:
            rows, columns = matrix.weight.shape
            for key in MOMENTS:
                matrix[key] = matrix.weight.new_zeros((rows, 1) if matrix.tall else (1, columns))
            matrix["norm"] = matrix.weight.new_zeros(())
        return tuple(matrix[key] for key in (*MOMENTS, "norm"))
