"""One task's gradient, as a way of balancing sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inner = Callable[[Sequence[str], Sequence[Tensor], Sequence[Tensor]], float]
"""The inner product of two lists of gradients of the parameters named, over all ranks that hold pieces of them."""


def inner(names: Sequence[str], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """`Inner` where this process holds all."""
    found = [torch.sum(one.double() * other.double()) for one, other in zip(a, b, strict=True)]
    return float(torch.stack(found).sum()) if found else 0.0


@dataclass
class Gradient:
    """What one task's own backward pass gave.

    Attributes:
        task: its name.
        loss: its weighted terms, divided by their global counts.
        parts: a gradient for each of the model's parameters, in their order, or this rank's piece of it; None where the task doesn't reach.
        names: those parameters' names.
        inner: how inner products are taken.
    """

    task: str
    loss: float
    parts: list[Tensor | None]
    names: list[str]
    inner: Inner = inner

    def dot(self, other: Gradient) -> float:
        """The inner product over the parameters both reach."""
        both = [(n, a, b) for n, a, b in zip(self.names, self.parts, other.parts, strict=True) if a is not None and b is not None]
        return self.inner([n for n, _, _ in both], [a for _, a, _ in both], [b for _, _, b in both])

    def norm(self, shared: set[str] | None = None) -> float:
        """Its length, over all parameters or those named."""
        own = [(n, p) for n, p in zip(self.names, self.parts, strict=True) if p is not None and (shared is None or n in shared)]
        parts = [p for _, p in own]
        return self.inner([n for n, _ in own], parts, parts) ** 0.5


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
