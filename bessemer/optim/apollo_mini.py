"""APOLLO-Mini: APOLLO at rank 1, one factor a matrix."""

from __future__ import annotations

from typing import Any

from bessemer.optim._rule import Products
from bessemer.optim.apollo import Apollo


class ApolloMini(Apollo):
    """APOLLO at rank 1 with one factor for a whole matrix (Zhu et al. 2024).

    Claim: AdamW's perplexity or better at plain SGD's memory.
    State of an m x n matrix, m <= n: 2 n numbers of the parameter's type and one norm.

    Args:
        refresh: steps between projections.
        scale: of the update, its square root is applied.
        weight_decay: decoupled.
        seed: of the projections.
        products: what matrices are multiplied in.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-2,
        betas: list[float] = [0.9, 0.999],
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        refresh: int = 200,
        scale: float = 128.0,
        seed: int = 0,
        products: Products = "float32",
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            rank=1,
            refresh=refresh,
            scale=scale,
            by="tensor",
            seed=seed,
            products=products,
        )
