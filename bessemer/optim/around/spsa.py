"""Gradients from losses alone, by random directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bessemer.core import rng
from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, Positive
from bessemer.optim._probe import Probe, laid_out, weights
from bessemer.optim.around._around import Around


class ZerothOrder(Around):
    """What estimators of the gradient share: nothing is differentiated, and the estimate is put where the gradient would be."""

    sharded = True
    seed: int = 0

    def __init__(self, params: Any, model: nn.Module) -> None:
        super().__init__(params, model)

    def begin(self, progress: Progress) -> None:
        """Switches the backward pass off."""
        every = set(self.everywhere)
        for name, parameter in self.model.named_parameters():
            if name in every and parameter.requires_grad:
                parameter.requires_grad_(False)

    def draw(self, probe: Probe, parameter: Tensor, *key: int | str) -> Tensor:
        """Normal numbers of the parameter's shape, a function of the key and the parameter's name; this rank's part of them."""
        name = self.names[parameter]
        drawn = torch.randn(parameter.shape, generator=rng.generator(self.seed, *map(str, key), name))
        return laid_out(drawn.to(parameter.device, parameter.dtype), parameter, probe.engine.layout.parts.get(name, ()))

    def slope(self, probe: Probe, direction: dict[Tensor, Tensor], radius: float, base: float | None = None) -> float:
        """The loss's derivative along a direction by central differences, or by forward ones from a known loss."""
        with probe.exact():
            with weights({p: p.detach() + radius * d for p, d in direction.items()}):
                ahead = probe.loss()
            if base is not None:
                return (ahead - base) / radius
            with weights({p: p.detach() - radius * d for p, d in direction.items()}):
                return (ahead - probe.loss()) / (2.0 * radius)


class Spsa(ZerothOrder):
    """Estimates the gradient from two losses along a random direction (Spall 1992; for language models Malladi et al. 2023, MeZO).

    Claim: fine-tuning with the memory of inference. Any optimizer moves by the estimate; sgd as published.
    No activation is kept. Unlike MeZO, which moves by the direction as it redraws it, this holds the estimate and one copy of the
    weights, so that clipping, guards and other optimizers work on it and the weights come back bit by bit.

    Args:
        radius: how far from the weights the losses are taken.
        directions: how many are averaged; each takes two forward passes.
        seed: of the directions.
    """

    def __init__(self, params: Any, model: nn.Module, *, radius: Positive = 1e-3, directions: Count = 1, seed: int = 0) -> None:
        self.radius, self.directions, self.seed = radius, directions, seed
        super().__init__(params, model)

    @torch.no_grad()
    def prepare(self, probe: Probe) -> None:
        """gradient = mean of slope times direction."""
        for number in range(self.directions):
            direction = {p: self.draw(probe, p, "spsa", probe.progress.step, number) for p in self.names}
            share = self.slope(probe, direction, self.radius) / self.directions
            for p, d in direction.items():
                p.grad = d * share if number == 0 else p.grad.add_(d, alpha=share)  # type: ignore[union-attr]
