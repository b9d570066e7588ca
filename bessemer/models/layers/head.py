"""The map from hidden states to logits."""

from __future__ import annotations

from torch import nn

from bessemer.models.layers.linear import Linear


class Head(Linear):
    """Logits [..., vocabulary] of hidden states [..., width]; tied heads share the token embedding's weight.

    Objectives read `weight` and `bias` to form the loss in chunks, so the full logits are never held.
    """

    def __init__(self, width: int, vocabulary: int, bias: bool = False, tied: nn.Parameter | None = None) -> None:
        super().__init__(width, vocabulary, axes=("vocabulary", "embed"), bias=bias, role="head")
        if tied is not None:
            self.weight = tied
