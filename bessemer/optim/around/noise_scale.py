"""How large a batch is worth its while."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bessemer.core.batch import Batch
from bessemer.core.mesh import ROWS
from bessemer.core.ranges import Count, Decay
from bessemer.optim._probe import Probe
from bessemer.optim.around._around import Around


class NoiseScale(Around):
    """Measures the gradient noise scale, the batch size up to which doubling it nearly halves the steps (McCandlish et al. 2018).

    B = tr(covariance) / |mean|^2 of the gradient of one token, from the squared norms of the gradient over the whole batch and over its first
    part; both estimates are averaged over steps before they are divided, each measurement relative to its gradients' lengths, for early ones are
    many times longer. (That reads a gradient of 50 numbers 9% too low, and one of 1,000 as it is.) `progress.noise_scale` holds it, in tokens, for
    metrics and for schedules such as `noise_ramp`; it is 0 while noise hides the mean. A measurement takes one more pass over the first
    micro-batch, or over half the rows of a lone one, or over the first half of a lone row.

    Args:
        every: steps between two measurements.
        decay: of the averages.
    """

    sharded = True

    def __init__(self, params: Any, model: nn.Module, *, every: Count = 10, decay: Decay = 0.9) -> None:
        self.every, self.decay = every, decay
        super().__init__(params, model)
        self.found: tuple[float, float] | None = None
        self.progress: Any = None

    def prepare(self, probe: Probe) -> None:
        """Compares a small batch's gradient with the whole batch's."""
        self.found, self.progress = None, probe.progress
        if probe.progress.step % self.every:
            return
        part = self._part(probe)
        small, large = self._count(probe, part), self._count(probe, probe.batches)
        if 0 < small < large:
            layout, members = probe.engine.layout, list(self.names)
            there = layout.square(members, probe.gradients(members, part))
            moving = [p for p in members if p.grad is not None]
            whole = layout.square(moving, [p.grad for p in moving])
            size = there + whole
            if 0.0 < size < float("inf"):
                mean, noise = (large * whole - small * there) / (large - small), (there - whole) / (1.0 / small - 1.0 / large)
                self.found = (mean / size, noise / size)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes the measurement into the averages."""
        if self.found is None:
            return
        count = self.plain["count"] = self.plain.get("count", 0) + 1
        for name, value in zip(("mean", "noise"), self.found, strict=True):
            self.plain[name] = self.decay * self.plain.get(name, 0.0) + (1.0 - self.decay) * value
        whole = 1.0 - self.decay**count
        mean, noise = self.plain["mean"] / whole, self.plain["noise"] / whole
        self.progress.noise_scale = noise / mean if mean > 0.0 and noise > 0.0 else 0.0

    def _part(self, probe: Probe) -> list[Batch]:
        """The same of the global batch however it is cut."""
        if len(probe.batches) > 1:
            return probe.batches[:1]
        lone, world = probe.batches[0], probe.engine.layout.world
        rows = world.joined([lone.rows], *ROWS)
        if sum(rows) > 1:
            wanted = sum(rows) // 2 - sum(rows[: world.index(*ROWS)])
            return [lone.rows_of(0, min(max(wanted, 0), lone.rows))]
        early = {
            name: weights.where(torch.arange(weights.shape[-1], device=weights.device) < weights.shape[-1] // 2, 0)
            for name, weights in lone.weights.items()
        }
        return [replace(lone, weights=early)]

    def _count(self, probe: Probe, batches: list[Batch]) -> float:
        """Tokens that are predicted."""
        own = sum(float(max((stream.sum() for stream in batch.weights.values()), default=torch.tensor(0.0))) for batch in batches)
        return float(probe.engine.layout.world.sum(torch.tensor(own, dtype=torch.float64), *ROWS))  # a batch has its rows' every column here
