"""Attention for processors in bfloat16: torch's flash kernel forward, blocked matrix products backward.

torch's own flash backward on processors takes two to five times as long as these products, which run on the processor's
matrix units while the compiler fuses the softmax between them. Made for code under torch.compile with static shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries taken together: later keys of a block are multiplied in vain, earlier blocks' keys not at all."""


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention, [rows, heads, length, head] each.

    Args:
        mask: bool [rows, 1, length, length] that allows nothing beyond causal attention; None: just causal.
    """
    return _Blocked.apply(query, key, value, mask)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else torch.where(mask, 0.0, float("-inf")).to(query.dtype)
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mixed, log_total = flash(query, key, value, 0.0, mask is None, attn_mask=bias)
        ctx.save_for_backward(query, key, value, mixed, log_total.unsqueeze(-1), mask)
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mixed, log_total, mask = ctx.saved_tensors
        grad, length, scale = grads[0].contiguous(), query.shape[2], query.shape[-1] ** -0.5
        along = (grad.float() * mixed.float()).sum(-1, keepdim=True)
        queries, keys, values = [], [], []
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            here = slice(start, stop)
            scores = torch.matmul(query[:, :, here], key[:, :, :stop].transpose(-1, -2)).float() * scale
            share = torch.exp(torch.where(_allowed(mask, start, stop, query.device), scores, float("-inf")) - log_total[:, :, here])
            pull = torch.matmul(grad[:, :, here], value[:, :, :stop].transpose(-1, -2)).float()
            change = (share * (pull - along[:, :, here]) * scale).to(query.dtype)
            queries.append(torch.matmul(change, key[:, :, :stop]))
            keys.append(torch.matmul(change.transpose(-1, -2), query[:, :, here]))
            values.append(torch.matmul(share.to(query.dtype).transpose(-1, -2), grad[:, :, here]))
        return torch.cat(queries, 2), _overlapped(keys), _overlapped(values), None


def _allowed(mask: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor:
    """Which of the keys before `stop` the queries from `start` on may look at."""
    if mask is not None:
        return mask[:, :, start:stop, :stop]
    return torch.arange(stop, device=device)[None, :] <= torch.arange(start, stop, device=device)[:, None]


def _overlapped(parts: list[Tensor]) -> Tensor:
    """The sum of parts that each begin at key 0 and reach one block further than the one before."""
    columns = []
    for number, part in enumerate(parts):
        first = parts[number - 1].shape[2] if number else 0
        column = part[:, :, first:]
        for later in parts[number + 1 :]:
            column = column + later[:, :, first : part.shape[2]]
        columns.append(column)
    return torch.cat(columns, 2)
