"""Cross-entropy of hidden states through a head, in chunks of tokens, so that the full logits are never held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22


def auto_chunk(tokens: int, vocabulary: int) -> int:
    """Tokens per chunk: logits of about 16 MB in float32, which stay near the cache while the products stay large."""
    return min(tokens, max(64, CHUNK_ELEMENTS // vocabulary))


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, z: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of cross-entropy and z-loss.

    Args:
        hidden: [tokens, width].
        weight, bias: of the head, [vocabulary, width] and [vocabulary] or None.
        targets: int64 [tokens]; anything where the weight is 0.
        weights: float32 [tokens].
        z: factor of log(Z)^2, the squared log of the softmax denominator (PaLM, section 5).
        chunk: tokens whose logits are formed at a time.

    Returns:
        Three 0-d float32 tensors: the loss (cross-entropy + z x log(Z)^2), with its graph; cross-entropy alone; log(Z)^2 alone.
    """
    return _CrossEntropy.apply(hidden, weight, bias, targets, weights, z, chunk)


class _CrossEntropy(torch.autograd.Function):
    """Forms the gradients while the logits of a chunk are at hand: one product forward, two backward, nothing computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, z: float, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(kind, enabled=False):
            cast = weight.to(dtype)
            grad_hidden = torch.empty_like(hidden) if wanted else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
            grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
            sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
            for start in range(0, hidden.shape[0], chunk):
                part = slice(start, start + chunk)
                inputs = hidden[part].to(dtype)
                logits = (inputs @ cast.T).float()
                if bias is not None:
                    logits += bias
                sums += _softmax_part(logits, targets[part], weights[part], z, wanted)
                if grad_hidden is None or grad_weight is None:
                    continue
                grads = logits.to(dtype)
                grad_hidden[part] = grads @ cast
                grad_weight += grads.T @ inputs
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
        ctx.grads = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias)
        loss, squares = sums.unbind()
        outputs = (loss + z * squares, loss.clone(), squares.clone())
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of this cross-entropy were already handed out; call it again")
        found, ctx.grads = ctx.grads, None
        scaled = [None if each is None else each.mul_(grads[0]) for each in found]
        return (*scaled, None, None, None, None)


def _softmax_part(logits: Tensor, targets: Tensor, weights: Tensor, z: float, wanted: bool) -> Tensor:
    """Sums of loss and squared log-denominators over a chunk; turns `logits` into their gradient in place when wanted."""
    target = torch.where(weights != 0, targets, 0)[:, None]
    peak = logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, target)
    total = (logits.sub_(peak)).exp_().sum(-1, keepdim=True)
    log_total = total.log() + peak
    column = weights[:, None]
    sums = torch.stack((((log_total - chosen) * column).sum(), (log_total.square() * column).sum()))
    if wanted:
        logits.mul_((1 + 2 * z * log_total) * column / total)
        logits.scatter_add_(-1, target, -column)
    return sums
