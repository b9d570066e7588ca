"""A searched combination of earlier weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bessemer.core import rng
from bessemer.core.ranges import Count, NonNegative
from bessemer.optim._probe import Probe, weights
from bessemer.optim.around.lawa import Lawa


class Lcsc(Lawa):
    """Evaluates and exports the linear combination of earlier weights that an evolutionary search finds best (Liu et al. 2024, LCSC).

    Claim: consistency models at the quality of 23 times (CIFAR-10) the training; the combination leaves the range of convex ones.
    State: k numbers per parameter. The search is run on the rows of the run's last step, after its update, each trial one forward pass over
    them; the coefficients add up to one and may be negative. It begins with the newest of the kept weights, the mean of all and exponential
    averages, and never returns worse than the best of them on those rows. With more than 1 for `times` it is run so often over the run, at equal
    intervals; from the next weights that are kept until the next search all count the same.

    Args:
        latest: how many are combined.
        every: steps between two of them.
        trials: combinations tried in a search.
        population: the best that breed.
        spread: standard deviation of a mutation.
        times: searches over the run.
        seed: of the search.
    """

    needs_gradients = True

    def __init__(
        self,
        params: Any,
        model: nn.Module,
        *,
        latest: Count = 8,
        every: Count = 25,
        trials: Count = 60,
        population: Count = 8,
        spread: NonNegative = 0.1,
        times: Count = 1,
        seed: int = 0,
    ) -> None:
        self.trials, self.population, self.spread, self.times, self.seed = trials, population, spread, times, seed
        super().__init__(params, model, latest=latest, every=every)
        self.rows: Probe | None = None

    def coefficients(self) -> list[float]:
        """Those found for the weights that are kept; all the same where none were."""
        return self.plain["coefficients"] if self.plain.get("searched") == self.plain.get("taken", 0) else super().coefficients()

    def prepare(self, probe: Probe) -> None:
        """Keeps this step's rows for a search, when one is due."""
        now, stride = probe.progress.fraction, probe.progress.stride
        passed = [int((where + 1e-9) * self.times) for where in (now, min(1.0, now + 1.5 * stride))]
        self.rows = probe if passed[1] > passed[0] else None

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Keeps the weights when it is time, and searches among all that are kept."""
        super().step()
        if self.rows is not None and self.held() > 1:
            self.plain["coefficients"], self.plain["searched"] = self.search(self.rows), self.plain["taken"]
        self.rows = None

    def search(self, probe: Probe) -> list[float]:
        """The best coefficients found, on the probe's rows."""
        draw = rng.generator(self.seed, "lcsc", probe.progress.step)
        found = sorted((self._score(probe, start), start) for start in self._beginnings())
        while len(found) < self.trials:
            parents = found[: self.population]
            first, second = (torch.tensor(parents[int(torch.randint(len(parents), (), generator=draw))][1]) for _ in range(2))
            mixed = torch.where(torch.rand(first.shape, generator=draw) < 0.5, first, second)
            child = mixed + self.spread * torch.randn(first.shape, generator=draw)
            child = child + (1.0 - child.sum()) / len(child)
            found = sorted([*found, (self._score(probe, child.tolist()), child.tolist())])
        return found[0][1]

    def _beginnings(self) -> list[list[float]]:
        """The newest alone, the mean, and exponential averages of several lengths."""
        count = self.held()
        ages = [(self.newest() - place) % count for place in range(count)]
        begun = [[1.0 if age == 0 else 0.0 for age in ages], [1.0 / count] * count]
        for keep in (0.3, 0.5, 0.7, 0.9):
            shares = [keep**age for age in ages]
            begun.append([share / sum(shares) for share in shares])
        return begun

    def _score(self, probe: Probe, coefficients: list[float]) -> float:
        with weights(self.combined(coefficients)):
            loss = probe.loss()
        return loss if loss == loss else float("inf")
