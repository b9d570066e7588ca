"""Shampoo: gradients between inverse roots of their second-moment matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import Count, NonNegative, Positive, Share, Whole
from bessemer.optim._matrices import Matrix, matrices, shapes
from bessemer.optim._rule import Group, Rule

SIDES = ("left", "right")


class Shampoo(Rule):
    """L^-1/4 G R^-1/4, with L and R the sums of G G^T and G^T G (Gupta et al. 2018).

    Claim: full-matrix AdaGrad's convergence at a matrix's cost.
    State of an m x n matrix: 2 (m^2 + n^2) + m + n numbers of the parameter's type, the sums, their eigenvectors and eigenvalues; a side longer
    than `most` keeps only the diagonal, m numbers, and so does a vector. Each matrix stacked in one weight has its own.

    Between two times that eigenvectors are found the eigenvalues go on, as what the sums hold along the vectors there are. Roots that stay as they
    were would take steps without bound where gradients had been small until then (160 steps of workload depth2, roots renewed every 20: 3.80
    bits a byte, every step 2.36).

    Args:
        decay: of the sums; 1 never forgets, as published.
        eps: the sums begin as eps times the identity.
        every: steps between new eigenvectors; with 1 the roots are exact.
        most: the longest side with a full matrix.
        weight_decay: decoupled.
    """

    transfer = "orthogonal"
    elementwise = False
    per_number = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 0.1,
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        decay: Share = 1.0,
        every: Count = 10,
        most: Whole = 4096,
    ) -> None:
        self.eps, self.decay, self.every, self.most = eps, decay, every, most
        super().__init__(params, lr, weight_decay)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """Sums, roots when they are due, and the step."""
        shrink = 1.0 - group["lr"] * group["weight_decay"]
        for step, stepping in self.counted(members):
            due = (step - 1) % self.every == 0
            for member in stepping:
                if member.ndim < 2:
                    gradient: Tensor = member.grad  # type: ignore[assignment]
                    squares = self._sum(self.state[member], "sum", gradient.square())
                    member.detach().mul_(shrink).addcdiv_(gradient, squares.sqrt(), value=-group["lr"])
            for _, found in matrices(group, stepping, self.state):
                for matrix in found:
                    matrix.weight.mul_(shrink).sub_(self._direction(matrix, due), alpha=group["lr"])

    def _direction(self, matrix: Matrix, due: bool) -> Tensor:
        turned = gradient = matrix.gradient
        fresh: dict[int, bool] = {}
        for side, name in enumerate(SIDES):
            slope = gradient if side == 0 else gradient.mT
            if len(slope) > self.most:
                self._sum(matrix, f"values.{name}", slope.square().sum(1))
                continue
            total = self._sum(matrix, f"sum.{name}", slope @ slope.mT)
            fresh[side] = due or f"basis.{name}" not in matrix
            if fresh[side]:
                values, vectors = torch.linalg.eigh(total.double())
                matrix[f"values.{name}"], matrix[f"basis.{name}"] = values.to(total.dtype), vectors.to(total.dtype)
            turned = matrix[f"basis.{name}"].mT @ turned if side == 0 else turned @ matrix[f"basis.{name}"]
        along = turned.square()
        for side, name in enumerate(SIDES):
            values = matrix[f"values.{name}"]
            if not fresh.get(side, True):
                self._sum(matrix, f"values.{name}", along.sum(1 - side))
            root = values.clamp(min=self.eps) ** -0.25
            turned = turned * (root[:, None] if side == 0 else root)
        for side, name in enumerate(SIDES):
            if side in fresh:
                turned = matrix[f"basis.{name}"] @ turned if side == 0 else turned @ matrix[f"basis.{name}"].mT
        return turned

    def _sum(self, state: Any, name: str, new: Tensor) -> Tensor:
        if name not in state:
            state[name] = self.eps * (torch.eye(len(new)).to(new) if name.startswith("sum.") else torch.ones_like(new))
        return state[name].mul_(self.decay).add_(new, alpha=1.0 if self.decay == 1.0 else 1.0 - self.decay)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Sums, eigenvectors and eigenvalues."""
        if len(shape) < 2:
            return torch.Size(shape).numel() * width
        return width * sum(2 * side * side + side if side <= self.most else side for matrix in shapes(shape, parts) for side in matrix)
