"""SGD-SaI: momentum with a learning rate per tensor, fixed by the first gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.core import device, shards
from bessemer.core.ranges import Decay, NonNegative, Positive
from bessemer.optim._blocks import States
from bessemer.optim._rule import Group, Rule, finite, gradients, sweep


class SgdSai(Rule):
    """Momentum scaled per tensor by the first gradient's norm over its deviation, relative to the largest (Xu et al. 2024, "No More Adam").

    Claim: matches AdamW on transformers with half its state.
    State: one number of the parameter's type per parameter, and one factor per tensor. Each part of a stacked weight shares its factor.

    Args:
        lr: of the tensor with the largest factor.
        momentum: of the gradient's running mean, which begins as the first gradient.
        weight_decay: decoupled.
        eps: added to the deviation.
        relative: divide the factors by the largest of the first step, as the authors' code does since 1.0.4.
        states: how the momentum is held.
    """

    apart = False

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1e-2,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 0.01,
        eps: Positive = 1e-8,
        relative: bool = True,
        states: States = "full",
    ) -> None:
        self.momentum, self.eps, self.relative = momentum, eps, relative
        super().__init__(params, lr, weight_decay, states)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Measures what moves for the first time, in all groups, then updates."""
        fresh = [p for g in self.param_groups for p in g["params"] if p.grad is not None and "factor" not in self.state[p]]
        for member in finite(fresh):
            factor = self._factor(member.grad)
            if factor > 0.0:  # a tensor without any gradient yet is measured at its first
                self.state[member]["factor"] = factor
        largest = max((group.get("largest", 0.0) for group in self.param_groups), default=0.0)
        if largest == 0.0:
            largest = _of_all_ranks(max((self.state[p]["factor"] for p in fresh if "factor" in self.state[p]), default=0.0))
        for group in self.param_groups:
            group["largest"] = largest
        super().step()

    def update(self, group: Group, members: list[Tensor]) -> None:
        """m keeps the running mean; p -= lr factor m."""
        shrink = 1.0 - group["lr"] * group["weight_decay"]
        whole = (group["largest"] if self.relative else 1.0) or 1.0
        for member in members:
            if "factor" not in self.state[member]:
                shards.local(member.detach()).mul_(shrink)
                continue
            size = group["lr"] * self.state[member]["factor"] / whole
            keep = self.momentum if "exp_avg" in self.state[member] or "exp_avg.codes" in self.state[member] else 0.0

            def move(p: list[Tensor], g: list[Tensor], m: list[Tensor], size: float = size, keep: float = keep) -> None:
                torch._foreach_lerp_(m, g, 1.0 - keep)
                torch._foreach_mul_(p, shrink)
                torch._foreach_add_(p, m, alpha=-size)

            sweep(move, [member], gradients([member]), self.column([member], "exp_avg"))

    def _factor(self, gradient: Any) -> float:
        """Norm over standard deviation; 1 for a single number, which has no deviation."""
        count = gradient.numel()
        if count < 2:
            return 1.0
        if shards.pieces(gradient) == 1:
            deviation, mean = map(float, torch.std_mean(shards.local(gradient).float()))
        else:
            here = shards.local(gradient).double()
            total, squares = shards.summed([gradient], torch.stack([here.sum(), here.square().sum()])[None])[0].tolist()
            mean = total / count
            deviation = math.sqrt(max(0.0, squares - count * mean * mean) / (count - 1))
        norm = math.sqrt(count) * math.hypot(deviation * math.sqrt(1 - 1 / count), mean)
        return norm / (deviation + self.eps)

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """One state; the factor is a plain number."""
        return self.column_bytes(torch.Size(shape).numel(), width)


def _of_all_ranks(value: float) -> float:
    """The largest that any rank has: stages of a pipeline hold different tensors."""
    if not dist.is_initialized():
        return value
    held = torch.tensor(value, dtype=torch.float64, device=device.device())
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return float(held)
