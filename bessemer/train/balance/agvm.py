"""Modules whose gradients are equally noisy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.core import rng
from bessemer.core.ranges import Decay, Growth
from bessemer.train.balance._gradient import Gradient, added

HEAPS = 256


class AGVM:
    """Scales each module's gradient so that its variance agrees with the first module's (Xue et al. 2022, "Large-batch Optimization for Dense Visual Predictions").

    A module is a part of the model by the first word of its parameters' names (blocks, adapters, head, tasks.NAME). The variance
    is estimated from the difference of two consecutive steps' gradients, relative to their squared length, and averaged over
    steps; the factor is the square root of the reference's over the module's own. The last gradients are remembered as sketches
    of 256 numbers (Charikar et al. 2002), which keep lengths and differences on average and fit into a checkpoint.

    Args:
        reference: the module whose variance is the measure.
        memory: how much of the last estimate stays.
        most: the largest factor, and one over the smallest.

    Attributes:
        whole: sketches are of whole gradients, so no rank may hold a piece only.
    """

    whole = True

    def __init__(self, *, reference: str = "blocks", memory: Decay = 0.97, most: Growth = 5.0) -> None:
        self.reference, self.memory, self.most = reference, memory, most
        self.variance: dict[str, float] = {}
        self.past: dict[str, list[float]] = {}
        self._signs: dict[str, Tensor] = {}

    def __call__(self, tasks: list[Gradient]) -> list[Tensor | None]:
        """The sum of the tasks' gradients, each module's times its factor."""
        total = added(tasks, {each.task: 1.0 for each in tasks})
        names = tasks[0].names
        modules: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            modules.setdefault(module_of(name), []).append(number)
        for module, members in modules.items():
            now = self._sketch({names[number]: total[number] for number in members})
            if module in self.past:
                self._observe(module, now, self.past[module])
            self.past[module] = now
        base = self.variance.get(self.reference)
        for module, members in modules.items():
            own = self.variance.get(module)
            if base is None or own is None or module == self.reference:
                continue
            factor = min(max((base / max(own, 1e-30)) ** 0.5, 1.0 / self.most), self.most)
            for number in members:
                part = total[number]
                total[number] = None if part is None else part * factor
        return total

    def _sketch(self, parts: dict[str, Tensor | None]) -> list[float]:
        """Elements with random signs, added up in 256 heaps."""
        total = torch.zeros(HEAPS, dtype=torch.float64)
        for name, part in parts.items():
            if part is None:
                continue
            flat = F.pad(part.detach().flatten(), (0, -part.numel() % HEAPS))
            if name not in self._signs:
                drawn = torch.randint(0, 2, (flat.numel(),), dtype=torch.int8, generator=rng.generator(0, "signs", name))
                self._signs[name] = (2 * drawn - 1).to(flat.device)
            total += (flat.double() * self._signs[name]).view(-1, HEAPS).sum(0).cpu()
        return total.tolist()

    def _observe(self, module: str, now: list[float], before: list[float]) -> None:
        length = sum(a * a + b * b for a, b in zip(now, before, strict=True)) / 2
        if length > 0.0:
            spread = sum((a - b) ** 2 for a, b in zip(now, before, strict=True)) / 2 / length
            self.variance[module] = self.memory * self.variance.get(module, spread) + (1.0 - self.memory) * spread

    def state(self) -> dict[str, Any]:
        return {"variance": dict(self.variance), "past": dict(self.past)}

    def restore(self, state: dict[str, Any]) -> None:
        self.variance, self.past = dict(state["variance"]), dict(state["past"])


def module_of(name: str) -> str:
    """The module a parameter belongs to."""
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("tasks", "adapters") else first
