"""GaLore with quantised moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.ranges import Betas, Count, NonNegative, Positive
from bessemer.core.registry import Auto
from bessemer.optim._rule import Products
from bessemer.optim.galore import Galore


class Galore8bit(Galore):
    """GaLore with its moments in 8 bits, in blocks of 256, and its projections in bfloat16 (Zhao et al. 2024).

    Claim: 82.5% less optimizer state than AdamW's in bfloat16.
    State of an m x n matrix, m <= n: 2 r m + 2.03125 r n bytes.

    Args:
        rank: of the projection, on the shorter side; "auto": a quarter of it.
        refresh: steps between projections.
        scale: the update's factor.
        weight_decay: decoupled.
        products: what matrices are multiplied in.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: NonNegative = 1e-2,
        betas: Betas = [0.9, 0.999],
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        rank: Count | Auto = "auto",
        refresh: Count = 200,
        scale: Positive = 0.25,
        products: Products = "float32",
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, rank=rank, refresh=refresh, scale=scale, states="8bit", products=products
        )

    def stored(self, basis: Tensor) -> Tensor:
        """In bfloat16."""
        return basis.bfloat16()

    def state_bytes(self, shape: Any, width: int = 4, parts: Any = ()) -> int:
        """Projection at two bytes a number, and two quantised moments."""
        return self.low_rank_bytes(shape, width, parts, held=torch.bfloat16.itemsize)
