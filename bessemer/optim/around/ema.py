"""An exponential average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bessemer.core.ranges import Decay
from bessemer.optim._probe import weights
from bessemer.optim.around._around import Around, refuse_changing


class Ema(Around):
    """Evaluates and exports an exponential average of the weights (Polyak and Juditsky 1992; Morales-Brotons et al. 2024).

    State: one number per parameter. The average begins as the weights after the first update.

    Args:
        decay: share of the average that is kept at each step.
        warm: let the decay rise as (1 + n) / (10 + n), so that a short run doesn't average its beginning.
    """

    sharded = True
    needs_gradients = False
    copies = 1

    def __init__(self, params: Any, model: nn.Module, *, decay: Decay = 0.999, warm: bool = True) -> None:
        self.decay, self.warm = decay, warm
        super().__init__(params, model)
        refuse_changing(self)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """average += (1 - decay) (weights - average)."""
        count = self.plain["count"] = self.plain.get("count", 0) + 1
        keep = min(self.decay, (1 + count) / (10 + count)) if self.warm else self.decay
        for parameter in self.names:
            state = self.state[parameter]
            if "average" not in state:
                state["average"] = parameter.detach().clone()
        averages = [self.state[p]["average"] for p in self.names]
        if averages:  # a stage of a pipeline may have none
            torch._foreach_lerp_(averages, [p.detach() for p in self.names], 1.0 - keep)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are the average inside."""
        with weights({p: self.state[p]["average"] for p in self.names if "average" in self.state.get(p, {})}):
            yield
