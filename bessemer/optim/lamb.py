"""LAMB: Adam, each matrix's step in proportion to its norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.core.ranges import Betas, NonNegative, Positive
from bessemer.optim import _fused
from bessemer.optim._blocks import States
from bessemer.optim._matrices import parts_of
from bessemer.optim._rule import Group, Rule, gradients, sweep


class Lamb(Rule):
    """Adam whose update, weight decay included, is scaled to the norm of the matrix it moves (You et al. 2020).

    Claim: BERT at batch 32,768 with one set of hyper-parameters, in 76 minutes.
    State: two numbers of the parameter's type per parameter. Each matrix stacked in one weight has its own norms.

    Args:
        lr: relative to a matrix's norm.
        correct: divide the moments by 1 - beta^t, as in the paper's algorithm (its code's later versions leave it out).
        most: the largest norm a matrix is taken to have (phi in the paper), 0 for any.
        states: how the two moments are held.
    """

    transfer = "relative"

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 2e-3,
        betas: Betas = [0.9, 0.999],
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.01,
        correct: bool = True,
        most: NonNegative = 0.0,
        states: States = "full",
    ) -> None:
        self.betas, self.eps, self.correct, self.most = betas, eps, correct, most
        super().__init__(params, lr, weight_decay, states)

    def update(self, group: Group, members: list[Tensor]) -> None:
        """u = m' / (sqrt(v') + eps) + decay w;  w -= lr |w| / |u| u."""
        for step, stepping in self.counted(members):
            first, second = self.column(stepping, "exp_avg"), self.column(stepping, "exp_avg_sq", signed=False)
            whole, rest = _fused.divided(zip(stepping, gradients(stepping), first, second, strict=True))
            if whole:
                self._move_at_once(group, step, whole)
            if rest:
                self._move(group, step, *map(list, zip(*rest, strict=True)))

    def _corrections(self, step: int) -> tuple[float, float]:
        """What the mean and the mean square are divided by."""
        return (1.0 - self.betas[0] ** step, 1.0 - self.betas[1] ** step) if self.correct else (1.0, 1.0)

    def _move_at_once(self, group: Group, step: int, rows: list[tuple[Any, ...]]) -> None:
        """By a kernel, which reads everything twice and writes no direction."""
        parts, (b1, b2), (c1, c2) = parts_of(group), self.betas, self._corrections(step)
        columns: list[list[Tensor]] = [[], [], [], []]
        for row in rows:
            for column, value in zip(columns, row, strict=True):
                column += shards.matrices(value.detach(), parts[id(row[0])])
        numbers = [1.0 - b1, b2, 1.0 - b2, c1, math.sqrt(c2), self.eps, group["weight_decay"], group["lr"], self.most]
        _fused.lamb(columns, numbers)

    def _move(self, group: Group, step: int, members: list[Tensor], slopes: list[Tensor], first: list[Any], second: list[Any]) -> None:
        (b1, b2), decay, (c1, c2) = self.betas, group["weight_decay"], self._corrections(step)

        def direct(u: list[Tensor], g: list[Tensor], p: list[Tensor], m: list[Tensor], v: list[Tensor]) -> None:
            torch._foreach_lerp_(m, g, 1.0 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, g, g, value=1.0 - b2)
            root = torch._foreach_sqrt(v)
            torch._foreach_div_(root, math.sqrt(c2))
            torch._foreach_add_(root, self.eps)
            torch._foreach_mul_(root, c1)
            torch._foreach_copy_(u, m)
            torch._foreach_div_(u, root)
            torch._foreach_add_(u, p, alpha=decay)

        moves = [torch.empty_like(p) for p in members]
        sweep(direct, moves, slopes, members, first, second)
        self._apply(group, members, moves)

    def _apply(self, group: Group, members: list[Tensor], moves: list[Tensor]) -> None:
        parts = parts_of(group)
        weights: list[Tensor] = []
        updates: list[Tensor] = []
        of: list[Tensor] = []
        for member, move in zip(members, moves, strict=True):
            weights += shards.matrices(member.detach(), parts[id(member)])
            updates += shards.matrices(move, parts[id(member)])
            of += [member] * (len(weights) - len(of))
        sizes, lengths = shards.norms(of, weights), shards.norms(of, updates)
        if self.most:
            sizes = sizes.clamp(max=self.most)
        ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, torch.ones_like(sizes))
        torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Two moments."""
        return 2 * self.column_bytes(torch.Size(shape).numel(), width)
