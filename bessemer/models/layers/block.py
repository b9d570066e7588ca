"""One layer of a transformer: attention and feed-forward around a residual stream."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from bessemer.models.layers.attention import Attention, Context

NormPlace = Literal["pre", "post", "reordered"]


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream.

    `place` says where the norms stand: "pre" x + f(norm(x)) (GPT-2, Llama), "post" norm(x + f(x)) (Vaswani et al. 2017),
    "reordered" x + norm(f(x)) (OLMo 2; these norms' gains then set a branch's size, so depth scaling acts on them). With `parallel` both read the same normalised x (PaLM, GPT-J).
    """

    def __init__(
        self, attention: Attention, mlp: nn.Module, attention_norm: nn.Module, mlp_norm: nn.Module | None, place: NormPlace, parallel: bool
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.place, self.parallel = place, parallel
        for each in (attention_norm, mlp_norm):
            if each is not None and place == "reordered":
                each.residual = True  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Context, cache: Any = None) -> Tensor:
        """x: [rows, length, width], to the same shape."""
        if self.parallel or self.mlp_norm is None:
            normed = self.attention_norm(x)
            return x + self.attention(normed, context, cache) + self.mlp(normed)
        if self.place == "pre":
            x = x + self.attention(self.attention_norm(x), context, cache)
            return x + self.mlp(self.mlp_norm(x))
        if self.place == "post":
            x = self.attention_norm(x + self.attention(x, context, cache))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention_norm(self.attention(x, context, cache))
        return x + self.mlp_norm(self.mlp(x))
