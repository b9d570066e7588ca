"""Adam on projections: what GaLore, Fira and APOLLO share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bessemer.optim._blocks import Packed, States, stored_bytes
from bessemer.optim._rule import Group, Matrix, Rule, gradients, shapes, sweep


class LowRank(Rule):
    """Adam on gradients projected to a low rank; parameters with less than two dimensions, or no wider than the rank, get plain AdamW.

    The bias correction is on the step, epsilon is added to the uncorrected root, and weight decay comes after the update, as in the
    authors' code of all three.
    """

    elementwise = False

    def __init__(
        self, params: Any, lr: float, weight_decay: float, betas: list[float], eps: float, rank: int, refresh: int, states: States = "full"
    ) -> None:
        self.betas, self.eps, self.rank, self.refresh = betas, eps, rank, refresh
        super().__init__(params, lr, weight_decay, states)

    def projects(self, rows: int, columns: int) -> bool:
        """Whether a matrix of this shape is projected."""
        return min(rows, columns) > self.rank

    def correction(self, step: int) -> float:
        """sqrt(1 - b2^t) / (1 - b1^t)."""
        return math.sqrt(1.0 - self.betas[1] ** step) / (1.0 - self.betas[0] ** step)

    def direction(self, gradient: Tensor, first: Tensor | Packed, second: Tensor | Packed) -> Tensor:
        """Adam's uncorrected m / (sqrt(v) + eps) after both moments took the gradient in."""
        out = torch.empty_like(gradient)

        def move(o: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
            self.moments(g, m, v)
            torch._foreach_copy_(o, m)
            root = torch._foreach_sqrt(v)
            torch._foreach_add_(root, self.eps)
            torch._foreach_div_(o, root)

        sweep(move, [out], [gradient], [first], [second])
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
        first, second = (matrix.moment(key, matrix.weight, self.states, key == "exp_avg") for key in ("exp_avg", "exp_avg_sq"))
        update = self.direction(matrix.gradient.contiguous(), first, second)
        matrix.weight.add_(update, alpha=-group["lr"] * self.correction(step)).mul_(1.0 - group["lr"] * group["weight_decay"])

    def low_rank_bytes(self, shape: Any, width: int, parts: Any, held: int, per_matrix: int = 0) -> int:
        """Two moments of rank times the longer side, and `held` times rank times the shorter side and `per_matrix` bytes besides."""
        if len(shape) < 2:
            return 2 * self.column_bytes(torch.Size(shape).numel(), width)
        total = 0
        for rows, columns in shapes(shape, parts):
            if self.projects(rows, columns):
                total += 2 * stored_bytes(self.rank * max(rows, columns), self.states, width) + held * self.rank * min(rows, columns) + per_matrix
            else:
                total += 2 * stored_bytes(rows * columns, self.states, width)
        return total


def norm_growth(matrix: Matrix, norm: Tensor, limit: float = 1.01) -> Tensor:
    """What an update is divided by so that its norm grows by at most `limit` a step (Chen et al. 2024, Fira, equation 8).

    The norm let through is kept in the matrix's state.
    """
    if "norm" not in matrix:
        matrix["norm"] = norm.clone()
        return torch.ones_like(norm)
    divisor = (norm / (matrix["norm"] + 1e-8)).clamp(min=limit) / limit
    matrix["norm"] = norm / divisor
    return divisor
