"""The next token's cross-entropy: pre-training, continued training and supervised tuning alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bessemer.core.batch import Batch, Outputs
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.objectives._cross_entropy import auto_chunk, cross_entropy
from bessemer.objectives._objective import Objective

STREAM = "next_token"


class NextToken(Objective):
    """Cross-entropy of the next token, the full logits never held, with z-loss (Chowdhery et al. 2022, "PaLM").

    Terms: `next_token`, the loss that is trained on. With z > 0 also, as figures only, `cross_entropy` and `z` (mean log(Z)^2).
    All are counted over the weight stream "next_token".

    Args:
        z: factor of the squared log of the softmax denominator; PaLM's is 1e-4.
        chunk: tokens whose logits are formed at a time; auto keeps them near the cache.
    """

    def __init__(self, *, z: float = 0.0, chunk: int | Auto = "auto") -> None:
        self.z, self.chunk = z, chunk

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        assert batch.targets is not None
        loss, plain, squares = loss_of(outputs, outputs.hidden, batch.targets, batch.weights[STREAM], self.z, self.chunk)
        terms.add("next_token", loss, over=STREAM)
        if self.z:
            terms.add("cross_entropy", plain, over=STREAM, scale=0.0)
            terms.add("z", squares, over=STREAM, scale=0.0)
        return terms


def loss_of(outputs: Outputs, hidden: Tensor, targets: Tensor, weights: Tensor, z: float, chunk: int | Auto) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of `cross_entropy` for hidden states [rows, length, width] through the outputs' head."""
    head: Any = outputs.head
    share = head.share()
    flat = hidden.reshape(-1, hidden.shape[-1])
    size = auto_chunk(flat.shape[0], share.weight.shape[0]) if chunk == "auto" else chunk
    return cross_entropy(flat, share.weight, share.bias, targets.reshape(-1), weights.reshape(-1), z, size, share.first, share.ranks)
