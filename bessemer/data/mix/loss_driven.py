"""More of what is predicted badly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bessemer.core.errors import RecipeError
from bessemer.data.mix._online import View, normalised, present


class LossDriven:
    """Shares that grow with a source's held-out loss, as a bandit's odds with its reward (Albalak et al. 2023, "Efficient Online Data Mixing").

    Claim: the final perplexity of the next best method in 19% fewer steps, and 1.9% better few-shot accuracy.

    Every `every` steps the loss of each source is measured and averaged over time, and the shares become
    softmax(strength x loss / mean loss), with an equal part of `explore` kept for all. The paper's rewards are training losses weighted
    by one over their odds; measured on held-out text, each source has its loss at every look, and no such weight is needed.

    Args:
        sizes: name of each source or domain -> its tokens.
        every: steps between measurements.
        strength: how strongly shares follow losses.
        explore: the part of every batch that is shared equally.
        memory: how much of the average of earlier losses is kept at a measurement.

    Raises:
        RecipeError: an option is out of its range.
    """

    def __init__(self, sizes: Mapping[str, int], *, every: int = 100, strength: float = 2.0, explore: float = 0.1, memory: float = 0.5) -> None:
        if every < 1:
            raise RecipeError(f"at least 1 step lies between two measurements, and {every} is given", key="mix.every")
        for name, value in {"explore": explore, "memory": memory}.items():
            if not 0 <= value < 1:
                raise RecipeError(f"a fraction from 0 to below 1 is wanted, and {value} is given", key=f"mix.{name}")
        self.names, self.all = present(sizes), list(sizes)
        self.every, self.strength, self.explore, self.memory = every, strength, explore, memory
        self.losses: dict[str, float] = {}
        self.next = every
        self.shares = {name: (1.0 / len(self.names) if name in self.names else 0.0) for name in self.all}

    def look(self, view: View) -> dict[str, float] | None:
        if view.progress.step < self.next:
            return None
        self.next = view.progress.step + self.every
        found = view.measure()
        keep = self.memory if self.losses else 0.0
        self.losses = {name: keep * self.losses.get(name, 0.0) + (1 - keep) * found[name] for name in self.names}
        mean = sum(self.losses.values()) / len(self.names)
        odds = normalised({name: math.exp(self.strength * (loss / mean - 1)) for name, loss in self.losses.items()})
        equal = self.explore / len(self.names)
        self.shares = {name: (1 - self.explore) * odds[name] + equal if name in odds else 0.0 for name in self.all}
        return self.shares

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "next": self.next, "shares": self.shares}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses, self.next, self.shares = dict(state["losses"]), int(state["next"]), dict(state["shares"])
