"""Adafactor: Adam's second moment as an outer product."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import NonNegative, Positive
from bessemer.optim._matrices import Matrix, matrices, shapes
from bessemer.optim._owners import Cost, numbers
from bessemer.optim._rule import Group, Rule


class Adafactor(Rule):
    """The second moment of a matrix kept as its row and column means, the update clipped by its size (Shazeer and Stern 2018).

    Claim: Adam's quality at a sublinear memory.
    State of an m x n matrix: m + n numbers of the parameter's type; of a vector, one per parameter. Each matrix stacked in one weight has
    its own means.

    Args:
        lr: relative to a tensor's root mean square when `relative`.
        decay: the second moment's decay is 1 - t^-decay.
        clip: the largest root mean square of an update.
        relative: multiply the rate by max(least, the tensor's root mean square).
        least: of a tensor's root mean square.
        eps: added to squared gradients.
        weight_decay: decoupled, at the group's rate.
    """

    elementwise = False
    per_number = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1e-2,
        decay: NonNegative = 0.8,
        clip: Positive = 1.0,
        relative: bool = True,
        least: NonNegative = 1e-3,
        eps: Positive = 1e-30,
        weight_decay: NonNegative = 0.0,
    ) -> None:
        self.decay, self.clip, self.relative, self.least, self.eps = decay, clip, relative, least, eps
        super().__init__(params, lr, weight_decay)

    @property
    def cost(self) -> Cost:
        """Every number's; nothing is multiplied."""
        return numbers

    def update(self, group: Group, members: list[Tensor]) -> None:
        """Divides the gradient by the root of the factored second moment."""
        for step, stepping in self.counted(members):
            share = step**-self.decay
            for member in stepping:
                if member.ndim < 2:
                    self._apply(group, member.detach(), self._vector(member, share))
            for _, found in matrices(group, stepping, self.state):
                for matrix in found:
                    self._apply(group, matrix.weight, self._matrix(matrix, share))

    def _vector(self, member: Tensor, share: float) -> Tensor:
        gradient: Tensor = member.grad  # type: ignore[assignment]
        state = self.state[member]
        if "squares" not in state:
            state["squares"] = torch.zeros_like(member)
        state["squares"].lerp_(gradient.square() + self.eps, share)
        return gradient * state["squares"].rsqrt()

    def _matrix(self, matrix: Matrix, share: float) -> Tensor:
        gradient = matrix.gradient
        rows, columns = gradient.shape
        if "rows" not in matrix:
            matrix["rows"], matrix["columns"] = gradient.new_zeros(rows), gradient.new_zeros(columns)
        matrix["rows"].lerp_(torch.linalg.vector_norm(gradient, dim=1).square_().div_(columns).add_(self.eps), share)
        matrix["columns"].lerp_(gradient.square().sum(0).div_(rows).add_(self.eps), share)
        left = (matrix["rows"] / matrix["rows"].mean()).rsqrt_()
        return (gradient * left[:, None]).mul_(matrix["columns"].rsqrt())

    def _apply(self, group: Group, weight: Tensor, update: Tensor) -> None:
        root = math.sqrt(weight.numel())
        size = update.norm() / (root * self.clip)
        factor = group["lr"] / size.clamp(min=1.0)
        if self.relative:
            factor = factor * (weight.norm() / root).clamp(min=self.least)
        if group["weight_decay"]:
            weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight.sub_(update.mul_(factor))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Row and column means, or squares."""
        if len(shape) < 2:
            return torch.Size(shape).numel() * width
        return sum(rows + columns for rows, columns in shapes(shape, parts)) * width
