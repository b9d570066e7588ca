"""LoRA that begins at the principal part of the weight."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bessemer.core.ranges import Count
from bessemer.core.registry import Auto
from bessemer.models.reparameterize._low_rank import LowRank
from bessemer.models.reparameterized import Match, Others, Place, rank_of, replace, svd


def pissa(model: nn.Module, seed: int = 0, *, rank: Count | Auto = 16, match: Match = "blocks.*", others: Others = "freeze") -> nn.Module:
    """Trains the principal singular values and vectors, the rest of the weight frozen (Meng et al. 2024, "PiSSA").

    With W = U S V^T and its first rank components: A = U_r S_r^1/2 and B = S_r^1/2 V_r^T train, W - A B is frozen. The model begins
    as it was. Trains rank x (outputs + inputs) numbers of each matrix, as LoRA does.

    Claim: Mistral-7B reaches 72.9% on GSM8K where LoRA reaches 67.7%.

    Args:
        rank: of the principal part; auto: a quarter of each matrix's smaller side.
        match: which linear layers.
        others: whether all other parameters train or are frozen.
    """
    return replace(model, partial(PiSSAMatrix, rank=rank), seed, match, others)


class PiSSAMatrix(LowRank):
    """(W - A B) + A B with A B the best approximation of W of that rank at the start."""

    def __init__(self, weight: Tensor, place: Place, *, rank: int | Auto) -> None:
        super().__init__(weight, place, rank_of(weight, rank), 1.0)
        left, values, right = svd(weight)
        roots = values[: self.rank].sqrt()
        with torch.no_grad():
            self.left.copy_(left[:, : self.rank] * roots)
            self.right.copy_(roots[:, None] * right[: self.rank])
            self.base -= self.left @ self.right
