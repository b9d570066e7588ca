"""Gradients from losses alone, coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bessemer.core import rng, shards
from bessemer.core.ranges import Count, Part, Positive
from bessemer.optim._probe import Probe, Reuse, weights
from bessemer.optim.around.spsa import ZerothOrder


class DeepZero(ZerothOrder):
    """Estimates some coordinates of the gradient by one loss each, as many of each tensor as pruning scores say (Chen et al. 2023, DeepZero).

    Claim: training from scratch without backpropagation, near its accuracy on ResNet-20 (CIFAR-10).
    Coordinates are drawn anew at each step. How many a tensor gets follows from ZO-GraSP at the first step: scores -w * (H g) from random
    directions alone, the lowest kept, all tensors together. What the blocks before a coordinate give is computed once a step and reused.
    A step takes one forward pass for each coordinate: for small networks, or few coordinates.

    Args:
        radius: how far a coordinate is moved. Single precision rounds the loss at about one part in 10 million, which bounds it below.
        keep: the share of coordinates that is estimated.
        directions: random directions behind the pruning scores.
        seed: of directions and coordinates.
    """

    def __init__(self, params: Any, model: nn.Module, *, radius: Positive = 5e-3, keep: Part = 0.1, directions: Count = 20, seed: int = 0) -> None:
        self.radius, self.keep, self.directions, self.seed = radius, keep, directions, seed
        super().__init__(params, model)

    @torch.no_grad()
    def prepare(self, probe: Probe) -> None:
        """gradient_i = (loss(w + radius e_i) - loss(w)) / radius for the drawn coordinates, 0 for the others."""
        if "shares" not in self.plain:
            self.plain["shares"] = self.shares(probe) if self.keep < 1.0 else [1.0] * len(self.everywhere)
        every = dict(self.model.named_parameters())
        with probe.exact(), probe.reusing() as reuse:
            for share, name in zip(self.plain["shares"], self.everywhere, strict=True):
                parameter = every[name]
                parts = probe.engine.layout.parts.get(name, ())
                found = self.estimate(reuse, parameter, parts, reuse.first_after(name), self.coordinates(parameter, name, share, probe.progress.step))
                parameter.grad = None if parameter.is_meta else found

    def estimate(self, reuse: Reuse, parameter: Tensor, parts: Sequence[int], first: int, coordinates: Tensor) -> Tensor:
        """Forward differences at these places of a parameter that no block before `first` reads; ranks that hold the place move it."""
        found = torch.zeros_like(parameter)
        if parameter.is_meta:  # another stage's: this one takes part in its losses
            for _ in coordinates:
                reuse.loss(first)
            return found
        here, flat = shards.local(found).view(-1), shards.local(parameter.detach()).view(-1)
        for place in shards.where(parameter, coordinates, parts).tolist():
            if place >= 0:
                before = flat[place].clone()
                flat[place] += self.radius
            change = reuse.loss(first) - reuse.base
            if place >= 0:
                here[place] = change / float(flat[place] - before)
                flat[place] = before
        return found

    def coordinates(self, parameter: Tensor, name: str, share: float, step: int) -> Tensor:
        """Places drawn for this step: a function of the seed, the step and the parameter's name."""
        count = min(parameter.numel(), math.ceil(share * parameter.numel()))
        order = torch.randperm(parameter.numel(), generator=rng.generator(self.seed, "coordinates", step, name))
        return order[:count]

    def shares(self, probe: Probe) -> list[float]:
        """ZO-GraSP: the share of each tensor's coordinates among the `keep` lowest scores."""
        here = self.random_gradient(probe)
        with weights({p: p.detach() + self.radius * g for p, g in here.items()}):
            there = self.random_gradient(probe)
        layout = probe.engine.layout
        mine = [
            (n, shards.whole(-p.detach() * (there[p] - here[p]) / self.radius, layout.parts.get(n, ())).reshape(-1)) for p, n in self.names.items()
        ]
        whole = dict(layout.world.joined(mine, "pipe"))
        every = torch.cat([whole[name] for name in self.everywhere])
        limit = every.kthvalue(max(1, round(self.keep * every.numel()))).values
        return [float((whole[name] <= limit).double().mean()) for name in self.everywhere]

    def random_gradient(self, probe: Probe) -> dict[Tensor, Tensor]:
        """The mean of forward differences along random directions."""
        base, found = probe.loss(), {p: torch.zeros_like(p) for p in self.names}
        for number in range(self.directions):
            direction = {p: self.draw(probe, p, "grasp", number) for p in self.names}
            share = self.slope(probe, direction, self.radius, base) / self.directions
            for p, d in direction.items():
                found[p].add_(d, alpha=share)
        return found
