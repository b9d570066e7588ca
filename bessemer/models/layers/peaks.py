"""The largest attention logit of each head, for who asks: softmax attention itself never shows it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Queries taken together."""


@torch.no_grad()
def note(peaks: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, valid: Tensor | None) -> None:
    """Raises `peaks` to the largest q . k / sqrt(head) of each head that the mask lets through, padding left out.

    Args:
        peaks: float32 [heads], changed in place.
        query: [rows, heads, length, head].
        key: [rows, kv_heads, columns, head].
        mask: bool [rows or 1, 1, length, columns], or None: there are as many columns as queries.
        causal: whether without a mask nothing later is seen.
        valid: bool [rows, length], False where a query is padding, or None.
    """
    rows, heads, length, size = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], length, size)
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        seen = stop if mask is None and causal else key.shape[2]
        scores = torch.matmul(grouped[:, :, :, start:stop], key[:, :, None, :seen].transpose(-1, -2)).flatten(1, 2).float()
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, start:stop], -torch.inf)
        elif causal:
            later = torch.arange(seen, device=key.device)[None, :] > torch.arange(start, stop, device=key.device)[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, start:stop, None], -torch.inf)
        peaks.copy_(torch.maximum(peaks, scores.amax((0, 2, 3)) * size**-0.5))
