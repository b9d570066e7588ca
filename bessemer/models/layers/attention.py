"""Attention: grouped queries, packed documents, sliding windows, rotary or no positions, norms on queries and keys."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core import device
from bessemer.models.layers import peaks
from bessemer.models.layers.blocked import blocked_attention
from bessemer.models.layers.linear import Linear
from bessemer.models.layers.modal import Kinds
from bessemer.models.layers.native_attention import fits, native_attention
from bessemer.models.layers.norm import RMSNorm
from bessemer.models.layers.rope import rotate

QKNorm = Literal["none", "head", "whole"]


class Cache(Protocol):
    """What cached generation asks of a cache.

    Attributes:
        length: columns filled before this call: an int when all rows stand at the same column, or int64 [rows] when each
            row's new keys go to columns of its own. Read once, before the first layer.
        columns: how many columns `update` returns when that is fixed (columns not yet written are masked), or None when it
            returns just those filled. May be absent.
    """

    @property
    def length(self) -> int | Tensor: ...

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one layer's new keys and values [rows, kv_heads, new, head] at columns `length` and on; returns all columns."""
        ...


class Spread(Protocol):
    """The columns of a batch spread over ranks: what a layer asks for that mixes or counts columns it doesn't hold.

    Attributes:
        longest: the highest position in any column of the batch, plus one.
    """

    @property
    def longest(self) -> int: ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """Causal attention inside documents, at most `window` tokens back: [rows, heads, own columns, head] of the same; see Attention."""
        ...

    def keys(self, key: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """All columns' keys [rows, kv_heads, length, head], and which of them own columns may look at, as a `Context`'s mask; no gradient."""
        ...

    def whole(self, values: Tensor) -> Tensor:
        """[rows, own columns, ...] of every rank as [rows, length, ...] in the order of the text; no gradient."""
        ...

    def mine(self, values: Tensor) -> Tensor:
        """This rank's columns of [rows, length, ...]."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks; no gradient."""
        ...


class Context(NamedTuple):
    """What all layers share in one forward pass.

    Attributes:
        cos, sin: float32 [rows, length, 1, head / 2], or None without rotary positions.
        mask: bool [rows, 1, length, columns], True where a query may look; None: plain causal attention, or all columns.
        causal: whether nothing is seen but what came before: what a missing mask means, and what a mask keeps to.
        valid: bool [rows, length], False at padding; None: all are tokens.
        spread: who knows the columns that other ranks hold; None: all columns are here. With it the mask is None.
        window: tokens a query may look back at, for `spread`; elsewhere the mask says it.
        kinds: the columns by modality, where some have feed-forward parts of their own; None: all hold text.
    """

    cos: Tensor | None
    sin: Tensor | None
    mask: Tensor | None
    causal: bool = True
    valid: Tensor | None = None
    spread: Spread | None = None
    window: int | None = None
    kinds: Kinds | None = None


class Attention(nn.Module):
    """Softmax attention over earlier tokens of the same document (Vaswani et al. 2017; GQA: Ainslie et al. 2023).

    Args:
        width: size of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; a divisor of `heads`.
        head_size: elements of a head.
        layer: its number, for the cache.
        qk_norm: RMSNorm on queries and keys, per head (Qwen 3) or over all heads at once (OLMo 2).
        bias: on queries, keys and values (Qwen 2), on all (GPT-2), or none.
        eps: of the norms.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_size: int, layer: int, *, qk_norm: QKNorm = "none", bias: str = "none", eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size, self.layer = heads, kv_heads, head_size, layer
        self.parts = (heads * head_size, kv_heads * head_size, kv_heads * head_size)
        self.qkv = Linear(width, sum(self.parts), axes=("heads", "embed"), bias=bias != "none", parts=self.parts)
        self.out = Linear(heads * head_size, width, axes=("embed", "heads"), bias=bias == "all", residual=True)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if qk_norm != "none":
            whole = qk_norm == "whole"
            self.q_norm = RMSNorm(self.parts[0] if whole else head_size, eps, "heads" if whole else "head")
            self.k_norm = RMSNorm(self.parts[1] if whole else head_size, eps, "heads" if whole else "head")
        self.norm_whole = qk_norm == "whole"
        self.peaks: Tensor | None = None  # [heads], where someone wants each head's largest logit

    def forward(self, x: Tensor, context: Context, cache: Any = None) -> Tensor:
        query, key, value = self.qkv(x).split(self.parts, dim=-1)
        rows, length, _ = query.shape
        if self.q_norm is not None and self.k_norm is not None and self.norm_whole:
            query, key = self.q_norm(query), self.k_norm(key)
        query = query.view(rows, length, self.heads, self.head_size)
        key = key.view(rows, length, self.kv_heads, self.head_size)
        value = value.view(rows, length, self.kv_heads, self.head_size).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None and not self.norm_whole:
            query, key = self.q_norm(query), self.k_norm(key)
        if context.cos is not None and context.sin is not None:
            query, key = rotate(query, context.cos, context.sin), rotate(key, context.cos, context.sin)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        mask = context.mask
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        if self.peaks is not None and self.training:
            keys, seen = (key, mask) if context.spread is None else context.spread.keys(key, context.window)
            peaks.note(self.peaks, query, keys, seen, context.causal, context.valid)
        if context.spread is not None:
            mixed = context.spread.attend(query, key, value, context.window)
        elif cache is None and context.causal and torch.compiler.is_compiling() and fits(query, mask):
            mixed = native_attention(query, key, value, mask)
        elif cache is None and context.causal and torch.compiler.is_compiling() and device.slow_flash_backward(query):
            repeats = self.heads // self.kv_heads
            mixed = blocked_attention(query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), mask)
        else:
            causal = mask is None and context.causal
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=self.heads != self.kv_heads)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
