"""Tasks scaled by how uncertain each is."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from bessemer.core.ranges import NonNegative, Positive
from bessemer.train.balance._gradient import Gradient, added


class Uncertainty:
    """Scales each task by a learned precision exp(-s), at the price of s / 2 (Kendall et al. 2017, "Multi-Task Learning Using Uncertainty").

    Each s descends its own gradient of exp(-s) loss / 2 + s / 2, whose lowest point is s = log loss: every task then weighs as if
    its loss were 1. Losses must be positive.

    Args:
        lr: of the s.
        least: the smallest loss taken at its word.
    """

    def __init__(self, *, lr: NonNegative = 0.05, least: Positive = 1e-3) -> None:
        self.lr, self.least = lr, least
        self.logs: dict[str, float] = {}

    def __call__(self, tasks: list[Gradient]) -> list[Tensor | None]:
        """The sum of the tasks' gradients, each times its precision; the s move after."""
        factors = {each.task: math.exp(-self.logs.setdefault(each.task, 0.0)) for each in tasks}
        combined = added(tasks, factors)
        for each in tasks:
            if math.isfinite(each.loss):
                self.logs[each.task] += self.lr * 0.5 * (max(each.loss, self.least) * factors[each.task] - 1.0)
        return combined

    def state(self) -> dict[str, Any]:
        return {"logs": dict(self.logs)}

    def restore(self, state: dict[str, Any]) -> None:
        self.logs = {task: float(value) for task, value in state["logs"].items()}
