"""Few layers train at a time."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from bessemer.core import rng
from bessemer.core.errors import RecipeError
from bessemer.core.progress import Progress
from bessemer.core.ranges import Count
from bessemer.optim._probe import Probe
from bessemer.optim.around._around import Around


class Lisa(Around):
    """Trains a few layers at a time, drawn anew every so many steps, and the embedding and the head always (Pan et al. 2024, LISA).

    Claim: LoRA's memory, and better than training all parameters in fine-tuning.
    The others are frozen: no gradient, no update, and what the optimizers held for them is dropped, as in the paper's account of memory.
    Where ranks share parameters out, gradients of frozen ones are made and dropped: what FSDP gathers stays as it was first seen.
    Which layers train is a function of the seed and the step.

    Args:
        layers: how many train.
        every: steps until others are drawn.
        seed: of the draw.
    """

    sharded = True
    needs_gradients = False

    def __init__(self, params: Any, model: nn.Module, *, layers: Count = 2, every: Count = 20, seed: int = 0) -> None:
        self.layers, self.every, self.seed = layers, every, seed
        super().__init__(params, model)
        self.needs_gradients = any(isinstance(p, DTensor) for p in self.names)
        self.frozen: list[torch.Tensor] = []
        self.layer = {p: layer for p, name in self.names.items() if (layer := _layer(name)) is not None}
        self.there = sorted({layer for name in self.everywhere if (layer := _layer(name)) is not None})
        if layers > len(self.there):
            raise RecipeError(
                f"{layers} of {len(self.there)} layers can't train at a time", key="around.lisa.layers", mend="give no more than there are"
            )

    def drawn(self, step: int) -> set[int]:
        """The layers that train at this step."""
        order = torch.randperm(len(self.there), generator=rng.generator(self.seed, "lisa", step // self.every)).tolist()
        return {self.there[place] for place in order[: self.layers]}

    def begin(self, progress: Progress) -> None:
        """Freezes and thaws."""
        chosen = self.drawn(progress.step)
        self.frozen = [parameter for parameter, layer in self.layer.items() if layer not in chosen]
        for parameter, layer in self.layer.items():
            trains = layer in chosen
            if parameter.requires_grad != trains and not isinstance(parameter, DTensor):
                parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None
                for optimizer in self.optimizers:
                    optimizer.state.pop(parameter, None)

    def prepare(self, probe: Probe) -> None:
        """Drops what gradients frozen parameters have."""
        for parameter in self.frozen:
            parameter.grad = None


def _layer(name: str) -> int | None:
    """The number of the block that a parameter is in."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else None
