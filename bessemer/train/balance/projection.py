"""Conflicting gradients, each freed of what goes against another."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bessemer.core import rng
from bessemer.train.balance._gradient import Gradient, Stateless, added


class Projection(Stateless):
    """Takes from each task's gradient its component against any other task's it conflicts with (Yu et al. 2020, "Gradient Surgery").

    Two gradients conflict when their inner product is negative; the one is projected onto the plane normal to the other, for
    each other task in turn, always as that one's gradient was at first. The order of turns is keyed by the tasks' names and
    losses, so it differs from step to step and not from rank to rank.

    Args:
        seed: of the order.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, tasks: list[Gradient]) -> list[Tensor | None]:
        """The sum of the projected gradients."""
        changed = []
        for each in tasks:
            mine = replace(each, parts=[None if part is None else part.clone() for part in each.parts])
            others = sorted(
                (other for other in tasks if other is not each), key=lambda o: rng.key(self.seed, "turn", each.task, o.task, repr(o.loss))
            )
            for other in others:
                against = mine.dot(other)
                if against < 0.0:
                    factor = against / max(other.dot(other), 1e-30)
                    for part, theirs in zip(mine.parts, other.parts, strict=True):
                        if part is not None and theirs is not None:
                            part.sub_(theirs, alpha=factor)
            changed.append(mine)
        return added(changed, {each.task: 1.0 for each in tasks})
