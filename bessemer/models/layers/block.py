"""One layer of a transformer: attention and feed-forward around a residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from bessemer.models.layers.attention import Attention, Context
from bessemer.models.layers.experts import MixtureOfExperts
from bessemer.models.layers.modal import apart

NormPlace = Literal["pre", "post", "reordered"]


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    `place` says where the norms stand: "pre" x + f(norm(x)) (GPT-2, Llama), "post" norm(x + f(x)) (Vaswani et al. 2017),
    "reordered" x + norm(f(x)) (OLMo 2; these norms' gains then set a branch's size, so depth scaling acts on them). With `parallel` both read the same normalised x (PaLM, GPT-J).

    `others` are feed-forward parts for columns of other modalities than text (Lin et al. 2024, "MoMa"); attention and norms stay shared.
    """

    def __init__(
        self, attention: Attention, mlp: nn.Module, attention_norm: nn.Module, mlp_norm: nn.Module | None, place: NormPlace, parallel: bool,
        others: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.others = nn.ModuleList(others) if others else None
        self.place, self.parallel, self.routed = place, parallel, isinstance(mlp, MixtureOfExperts)
        for each in (attention_norm, mlp_norm):
            if each is not None and place == "reordered":
                each.residual = True  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Context, cache: Any = None) -> Tensor:
        """x: [rows, length, width], to the same shape."""
        if self.parallel or self.mlp_norm is None:
            normed = self.attention_norm(x)
            return x + self.attention(normed, context, cache) + self._feed(normed, context)
        if self.place == "pre":
            x = x + self.attention(self.attention_norm(x), context, cache)
            return x + self._feed(self.mlp_norm(x), context)
        if self.place == "post":
            x = self.attention_norm(x + self.attention(x, context, cache))
            return self.mlp_norm(x + self._feed(x, context))
        x = x + self.attention_norm(self.attention(x, context, cache))
        return x + self.mlp_norm(self._feed(x, context))

    def _feed(self, x: Tensor, context: Context) -> Tensor:
        if self.others is not None and context.kinds is not None:
            return apart([self.mlp, *self.others], x, context.kinds)
        return self.mlp(x, context) if self.routed else self.mlp(x)
