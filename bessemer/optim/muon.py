"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.core.errors import RecipeError
from bessemer.core.ranges import Count, Decay, NonNegative
from bessemer.optim._newton_schulz import Momentum, Polynomial, subtract_orthogonal
from bessemer.optim._owners import squared
from bessemer.optim._rule import finite, gradients
from bessemer.optim._stacks import Stacks


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan et al. 2024), matrices of a shape at once.

    Claim: half the steps of AdamW to the same loss. State: one number of the parameter's type per parameter.
    Each matrix stacked in one weight (query, key, value) is orthogonalised on its own. The update of a matrix is scaled by
    sqrt(max(1, outputs / inputs)), so that the best rate carries over between widths.

    Args:
        lr: spectral size of a step.
        momentum: of the gradient's running mean.
        nesterov: look one step ahead.
        steps: polynomials applied to make the momentum orthogonal; 5 as published.
        polynomial: "minimax" is better tuned and needs four steps where the published quintic needs five.
        weight_decay: decoupled.

    Raises:
        RecipeError: a parameter is no matrix, so that nothing of it could be orthogonal.
    """

    transfer = "orthogonal"
    columns = 1
    cost = staticmethod(squared)
    """Of a parameter that ranks hold pieces of, what is to be orthogonalised travels (as `Rule.columns` says, and `Rule.cost`)."""

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 0.02,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        steps: Count = 4,
        polynomial: Polynomial = "minimax",
        weight_decay: NonNegative = 0.1,
    ) -> None:
        self.polynomial: Polynomial = polynomial
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps, "weight_decay": weight_decay})
        self.stacks = [Stacks(group["params"], group.get("parts")) for group in self.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("names") or map(str, range(len(group["params"])))
        vectors = [name for name, parameter in zip(names, group["params"], strict=True) if parameter.ndim < 2]
        if vectors:
            raise RecipeError(
                f"muon moves matrices, and '{vectors[0]}' is none",
                key="optim",
                mend='give it matrices alone, and the rest to another: optim = [{ role = "matrix", name = "muon" }, { name = "adamw", lr = 0.03 }]',
            )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group, stacks in zip(self.param_groups, self.stacks, strict=True):
            moving = finite([p for p in group["params"] if p.grad is not None])
            if not moving:
                continue
            slopes = [shards.local(slope) for slope in gradients(moving)]
            means = [shards.local(self._momentum(p)) for p in moving]
            momentum = Momentum(group["momentum"], group["nesterov"])
            change = partial(subtract_orthogonal, steps=group["steps"], polynomial=self.polynomial)
            stacks.apply(moving, slopes, means, momentum, change, rate=group["lr"], keep=1.0 - group["lr"] * group["weight_decay"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]
