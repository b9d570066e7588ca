"""Weight-decomposed low-rank adaptation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from bessemer.core.ranges import Count, Positive
from bessemer.core.registry import Auto
from bessemer.models.reparameterize.lora import LoRAMatrix
from bessemer.models.reparameterized import Match, Others, Place, exact, replace


def dora(
    model: nn.Module, seed: int = 0, *, rank: Count | Auto = 16, alpha: Positive = 16.0, match: Match = "blocks.*", others: Others = "freeze"
) -> nn.Module:
    """A trained magnitude for each output times a direction that LoRA adapts (Liu et al. 2024, "DoRA").

    W = m x V / |V| with V = W0 + alpha / rank x B A, |V| the norm of each output's row and m beginning as the norms of W0, so the
    model begins as it was. As in the paper's section 4.3 the norm counts as a constant in the gradient. (The paper writes weights
    transposed, so its columns are the rows here, as in its code.) Trains outputs + rank x (outputs + inputs) numbers of each matrix.

    Claim: above LoRA by 3.7 points on commonsense reasoning with LLaMA-7B, at the same rank.

    Args:
        rank, alpha, match, others: as for lora.
    """
    return replace(model, partial(DoRAMatrix, rank=rank, alpha=alpha), seed, match, others)


class DoRAMatrix(LoRAMatrix):
    """magnitude x V / |V|, V = W0 + alpha / rank x B A."""

    magnitude: Tensor

    def __init__(self, weight: Tensor, place: Place, *, rank: int | Auto, alpha: float) -> None:
        super().__init__(weight, place, rank=rank, alpha=alpha)
        norms = torch.linalg.vector_norm(weight.detach().float(), dim=1).to(weight.dtype)
        self.hold("magnitude", norms, role="vector", axes=place.axes[:1])

    def scales(self) -> Tensor:
        """magnitude / |V|, [outputs]; |V| without a gradient. A row of zeros stays zero."""
        with torch.no_grad():
            norms = self.total(super().composed().square().sum(1)).sqrt()
        return self.magnitude / torch.where(norms > 0, norms, 1.0)

    def composed(self) -> Tensor:
        return self.scales()[:, None] * super().composed()

    def product(self, x: Tensor) -> Tensor:
        with exact(x):
            scales = self.scales()
        y = super().product(x)
        return scales.to(y.dtype) * y
