"""One task's gradient, as a way of balancing sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Gradient:
    """What one task's own backward pass gave.

    Attributes:
        task: its name.
        loss: its weighted terms, divided by their global counts.
        parts: a gradient for each of the model's parameters, in their order; None where the task doesn't reach.
        names: those parameters' names.
    """

    task: str
    loss: float
    parts: list[Tensor | None]
    names: list[str]

    def dot(self, other: Gradient) -> float:
        """The inner product over the parameters both reach."""
        found = [torch.sum(a.double() * b.double()) for a, b in zip(self.parts, other.parts, strict=True) if a is not None and b is not None]
        return float(torch.stack(found).sum()) if found else 0.0

    def norm(self, shared: set[str] | None = None) -> float:
        """Its length, over all parameters or those named."""
        return (
            sum(
                float(p.double().square().sum())
                for n, p in zip(self.names, self.parts, strict=True)
                if p is not None and (shared is None or n in shared)
            )
            ** 0.5
        )


def shared(tasks: list[Gradient]) -> set[str]:
    """The names of parameters that more than one task reaches."""
    names = tasks[0].names
    return {name for number, name in enumerate(names) if sum(each.parts[number] is not None for each in tasks) > 1}


def added(tasks: list[Gradient], factors: dict[str, float]) -> list[Tensor | None]:
    """The sum of all tasks' gradients, each times its factor."""
    total: list[Tensor | None] = [None] * len(tasks[0].names)
    for each in tasks:
        factor = factors[each.task]
        for number, part in enumerate(each.parts):
            if part is not None:
                so_far = total[number]
                total[number] = part * factor if so_far is None else so_far + part * factor
    return total


class Stateless:
    """A way of balancing that remembers nothing."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return
