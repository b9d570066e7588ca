"""Schedule-free AdamW: gradients at a point between the iterate and its average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from bessemer.core import shards
from bessemer.core.ranges import NonNegative, Positive
from bessemer.optim._blocks import States
from bessemer.optim._owners import Owners
from bessemer.optim._rule import Group, Rule, fused, gradients

Between = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2, max_length=2)]
"""Two decays; with 0 for the first y would be z, from which no average can be read back."""


class ScheduleFreeAdamW(Rule):
    """AdamW without a decay schedule: steps from z, gradients at y = b1 x + (1 - b1) z, results at the average x (Defazio et al. 2024).

    Claim: as good as a tuned cosine, at every moment of the run. Give it a constant schedule.
    State: two numbers of the parameter's type per parameter, z and the second moment. The parameters are y while training;
    `averaged()` shows x.

    Args:
        betas: how near y is to the average, and the second moment's decay.
        weight_decay: decoupled, taken at y.
        power: each step's weight in the average is the largest rate so far to this power (and the step's number to `rising`).
        rising: of the step's number in its weight.
        states: how the second moment is held; z is always full.
    """

    apart = False
    per_number = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 2.5e-3,
        betas: Between = [0.9, 0.999],
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        power: NonNegative = 2.0,
        rising: NonNegative = 0.0,
        states: States = "full",
    ) -> None:
        self.betas, self.eps, self.power, self.rising = betas, eps, power, rising
        super().__init__(params, lr, weight_decay, states)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Counts the step's weight in each group's average, then updates."""
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["largest"] = max(group["lr"], group.get("largest", 0.0))
            weight = group["count"] ** self.rising * group["largest"] ** self.power
            group["weights"] = group.get("weights", 0.0) + weight
            group["share"] = weight / group["weights"] if group["weights"] else 0.0
        super().step()

    def update(self, group: Group, members: list[Tensor]) -> None:
        """y and z move; x is never formed."""
        rate, share, decay, (near, keep) = group["lr"], group["share"], group["weight_decay"], self.betas
        correction = 1.0 - keep ** group["count"]
        for member in members:
            if "z" not in self.state[member]:
                self.state[member]["z"] = member.detach().clone(memory_format=torch.preserve_format)

        def move(y: list[Tensor], g: list[Tensor], z: list[Tensor], v: list[Tensor]) -> None:
            torch._foreach_mul_(v, keep)
            torch._foreach_addcmul_(v, g, g, value=1.0 - keep)
            root = torch._foreach_div(v, correction)
            torch._foreach_sqrt_(root)
            torch._foreach_add_(root, self.eps)
            update = torch._foreach_div(g, root)
            if decay:
                torch._foreach_add_(update, y, alpha=decay)
            torch._foreach_lerp_(y, z, share)
            torch._foreach_add_(y, update, alpha=rate * (near * (1.0 - share) - 1.0))
            torch._foreach_add_(z, update, alpha=-rate)

        iterates, second = [self.state[p]["z"] for p in members], self.column(members, "exp_avg_sq", signed=False)
        numbers = [keep, 1.0 - keep, correction, self.eps, decay, share, rate * (near * (1.0 - share) - 1.0), rate]
        fused("schedule_free", numbers, move, members, gradients(members), iterates, second)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters are the average x inside, for evaluation and export; after it they are y again, bit by bit."""
        every = [p for group in self.param_groups for p in group["params"]]
        cut = [[p for p in every if p in owners] for owners in self.gathering()]
        lying = {p: None for lie in cut for p in lie}
        here = [p for p in every if "z" in self.state.get(p, {}) and p not in lying]
        held = [(p, p.detach().clone()) for p in [*here, *lying]]
        try:
            with torch.no_grad():
                for p in here:
                    shards.local(p).lerp_(shards.local(self.state[p]["z"]), 1.0 - 1.0 / self.betas[0])
                for owners, lie in zip(self.gathering(), cut, strict=True):
                    self._average_pieces(owners, lie)
            yield
        finally:
            with torch.no_grad():
                for p, before in held:
                    p.copy_(before)

    def _average_pieces(self, owners: Owners, parameters: list[Tensor]) -> None:
        """The same for parameters whose z lies whole on one rank."""

        def average(whole: dict[int, list[Tensor]]) -> dict[int, Tensor]:
            states = {n: self.state.get(parameters[n], {}) for n in whole}
            return {n: y.lerp(states[n]["z"], 1.0 - 1.0 / self.betas[0]) if "z" in states[n] else y for n, (y,) in whole.items()}

        here = [shards.local(p.detach()) for p in parameters]
        for averaged in owners.apply(parameters, [here], average) if parameters else ():
            torch._foreach_copy_([here[n] for n in averaged], list(averaged.values()))

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """z and the second moment."""
        count = torch.Size(shape).numel()
        return count * width + self.column_bytes(count, width)
