"""The map from hidden states to logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from bessemer.core.collectives import Along
from bessemer.models.layers.linear import Linear


class Share(NamedTuple):
    """What a rank holds of a head: weight [tokens, width] and bias of the tokens from `first` on, the others' with `ranks`."""

    weight: Tensor
    bias: Tensor | None
    first: int = 0
    ranks: Along = Along()


class Head(Linear):
    """Logits [..., vocabulary] of hidden states [..., width]; tied heads share the token embedding's weight.

    Objectives take `share()` to form the loss in chunks, so the full logits are never held.
    """

    def __init__(self, width: int, vocabulary: int, bias: bool = False, tied: nn.Parameter | None = None) -> None:
        super().__init__(width, vocabulary, axes=("vocabulary", "embed"), bias=bias, role="head")
        if tied is not None:
            self.weight = tied

    def share(self) -> Share:
        """The tokens whose logits this rank forms: all of them, unless ranks share the vocabulary."""
        return Share(self.weight, self.bias)
