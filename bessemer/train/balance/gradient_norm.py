"""Tasks scaled to gradients of like length."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bessemer.core.ranges import Decay, NonNegative
from bessemer.train.balance._gradient import Gradient, added, shared


class GradientNorm:
    """Scales tasks so that their gradients are equally long on the shared weights, longer for those that learn slowly (Chen et al. 2017, "GradNorm").

    Where the paper learns the factors by a gradient of their own, they are set outright: the mean length, times the task's relative
    inverse training rate to the power `restoring`, over its own length; averaged over steps.

    Args:
        restoring: how much more a task gets whose loss fell less than the others'.
        memory: how much of the last factor stays.
    """

    def __init__(self, *, restoring: NonNegative = 0.5, memory: Decay = 0.9) -> None:
        self.restoring, self.memory = restoring, memory
        self.first: dict[str, float] = {}
        self.factors: dict[str, float] = {}

    def __call__(self, tasks: list[Gradient]) -> list[Tensor | None]:
        """The sum of the tasks' gradients, each times its factor; the factors have a mean of one."""
        common = shared(tasks) or None
        norms = {each.task: max(each.norm(common), 1e-12) for each in tasks}
        left = {each.task: each.loss / self.first.setdefault(each.task, max(each.loss, 1e-12)) for each in tasks}
        mean_norm, mean_left = (max(sum(found.values()) / len(tasks), 1e-12) for found in (norms, left))
        wanted = {task: mean_norm * max(left[task] / mean_left, 1e-6) ** self.restoring / norms[task] for task in norms}
        scale = len(tasks) / sum(wanted.values())
        for task, value in wanted.items():
            self.factors[task] = self.memory * self.factors.get(task, 1.0) + (1.0 - self.memory) * value * scale
        return added(tasks, self.factors)

    def state(self) -> dict[str, Any]:
        return {"first": dict(self.first), "factors": dict(self.factors)}

    def restore(self, state: dict[str, Any]) -> None:
        self.first, self.factors = dict(state["first"]), dict(state["factors"])
