"""LoRA that is merged and begun anew while training goes on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, Positive, Share
from bessemer.core.registry import Auto
from bessemer.models.reparameterize._low_rank import LowRank
from bessemer.models.reparameterized import Counting, Match, Optimizers, Others, Place, rank_of, replace


def relora(
    model: nn.Module, seed: int = 0, *, rank: Count | Auto = "auto", alpha: Positive | Auto = "auto", every: Count = 1000, prune: Share = 0.99,
    match: Match = "blocks.*", others: Others = "train",
) -> nn.Module:  # fmt: skip
    """LoRA merged into the weight and begun anew every so many updates, so that the sum has a high rank (Lialin et al. 2023, "ReLoRA").

    At a restart W += alpha / rank x B A, B becomes zeros, A is drawn anew, and of the optimizer's state of both all becomes zero but where its
    first part, Adam's mean, is largest. (The published code prunes the mean and the square each by itself; a mean that outlives its square is
    divided by epsilon, as A's gradient is zero while B is.) The learning rate should fall to zero and rise again with it: schedule.lr = { name = "jagged", every = the same }.
    The paper trains in full for the first quarter: a stage of its own before this one. Trains rank x (outputs + inputs) numbers of each
    matrix, and all that is not matched.

    Claim: a 1.3B model trained so takes 5.5 GB less memory and comes close to full training.

    Args:
        rank: of the factors; auto: a quarter of each matrix's smaller side.
        alpha: the product is scaled by alpha / rank; auto: by 1.
        every: updates between restarts.
        prune: share of the optimizer's state that a restart zeroes, the smallest by magnitude; 1: all of it, and its step count.
        match: which linear layers.
        others: whether all other parameters train or are frozen.
    """
    return replace(model, partial(ReLoRAMatrix, rank=rank, alpha=alpha, every=every, prune=prune), seed, match, others)


class ReLoRAMatrix(LowRank, Counting):
    """W0 + scale x B A, restarted."""

    def __init__(self, weight: Tensor, place: Place, *, rank: int | Auto, alpha: float | Auto, every: int, prune: float) -> None:
        own = rank_of(weight, rank)
        super().__init__(weight, place, own, 1.0 if alpha == "auto" else alpha / own)
        self.every, self.prune, self.zeroes = every, prune, prune < 1.0

    def act(self, progress: Progress, optimizers: Optimizers) -> None:
        """Restarts."""
        self.base.add_(self.left @ self.right, alpha=self.scale)
        self.left.zero_()
        drawn = torch.randn(self.right.shape, generator=self.place.generator("right", self.updates)) * (3 * self.inputs) ** -0.5
        self.right.copy_(drawn)
        for parameter in (self.left, self.right):
            if self.prune >= 1.0:
                optimizers.forget(parameter)
                continue
            states = optimizers.entries(parameter)
            if states:
                kept = largest(states[0], 1.0 - self.prune)
                for state in states:
                    state.mul_(kept)


def largest(state: Tensor, share: float) -> Tensor:
    """Which entries belong to that share of the greatest magnitudes; ties go to the earlier."""
    kept = torch.zeros_like(state, dtype=torch.bool).flatten()
    kept[state.abs().flatten().topk(round(share * state.numel())).indices] = True
    return kept.view_as(state)
