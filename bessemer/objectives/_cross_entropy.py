"""Cross-entropy of hidden states through a head, in chunks of tokens, so that the full logits are never held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.collectives import Along, reduced
from bessemer.core.compiler import fused
from bessemer.core.products import add_product, linear, product

CHUNK_ELEMENTS = 1 << 22


def auto_chunk(tokens: int, vocabulary: int) -> int:
    """Tokens per chunk: logits of about 16 MB in float32, which stay near the cache while the products stay large."""
    chunks = -(-tokens // max(64, CHUNK_ELEMENTS // vocabulary))
    return -(-tokens // chunks)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    z: float,
    chunk: int,
    first: int = 0,
    ranks: Along = Along(),
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of cross-entropy and z-loss.

    Ranks may share the vocabulary; they call this together with the same hidden states, and get the same sums and gradients.

    Args:
        hidden: [tokens, width].
        weight, bias: of the head, [vocabulary, width] and [vocabulary] or None.
        targets: int64 [tokens]; anything where the weight is 0.
        weights: float32 [tokens].
        z: factor of log(Z)^2, the squared log of the softmax denominator (PaLM, section 5).
        chunk: tokens whose logits are formed at a time.
        first: the token of the weight's first row.
        ranks: who holds the other rows.

    Returns:
        Three 0-d float32 tensors: the loss (cross-entropy + z x log(Z)^2), with its graph; cross-entropy alone; log(Z)^2 alone.
    """
    return _CrossEntropy.apply(hidden, weight, bias, targets, weights, z, chunk, first, ranks)


class _CrossEntropy(torch.autograd.Function):
    """Forms the gradients while the logits of a chunk are at hand: one product forward, two backward, nothing computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        z: float,
        chunk: int,
        first: int,
        ranks: Along,
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
                logits = linear(inputs, cast, None if bias is None else bias.to(dtype))
                if ranks.size > 1:
                    found, grads = _shared_sums_and_gradient(logits, targets[part] - first, weights[part], z, ranks)
                elif wanted:
                    found, grads = _sums_and_gradient(logits, targets[part], weights[part], z)
                else:
                    found, grads = _sums(logits, targets[part], weights[part]), logits
                sums += found
                if grad_hidden is None or grad_weight is None:
                    continue
                grad_hidden[part] = product(grads, cast)
                add_product(grad_weight, grads.T, inputs)
                if grad_bias is not None:
                    grad_bias += grads.sum(0, dtype=torch.float32)
            if grad_hidden is not None:
                grad_hidden = reduced(grad_hidden, ranks)
        ctx.grads = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias)
        loss, squares = sums.unbind()
        outputs = (loss + z * squares, loss.clone(), squares.clone())
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients of this cross-entropy were already handed out; call it again")
        again = torch._C._autograd._get_current_graph_task_keep_graph()  # a zero-bubble pipeline asks for inputs' and weights' in turn
        found, ctx.grads = ctx.grads, ctx.grads if again else None
        scaled = [None if each is None else each * grads[0] if again else each.mul_(grads[0]) for each in found]
        return (*scaled, None, None, None, None, None, None)


def _sums(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of loss and of the squared log-denominator over a chunk: float32 [2]."""
    values = logits.float()
    log_total = values.logsumexp(-1)
    chosen = values.gather(-1, torch.where(weights != 0, targets, 0)[:, None])[:, 0]
    return torch.stack((((log_total - chosen) * weights).sum(), (log_total.square() * weights).sum()))


@fused
def _sums_and_gradient(logits: Tensor, targets: Tensor, weights: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """The same, and the gradient of loss + z x square with respect to the logits, in their type."""
    values, column = logits.float(), weights[:, None]
    target = torch.where(weights != 0, targets, 0)[:, None]
    peak = values.amax(-1, keepdim=True)
    powers = torch.exp(values - peak)
    total = powers.sum(-1, keepdim=True)
    log_total = total.log() + peak
    chosen = values.gather(-1, target)
    sums = torch.stack((((log_total - chosen) * column).sum(), (log_total.square() * column).sum()))
    here = torch.arange(values.shape[-1], device=values.device)[None, :] == target
    gradient = powers * ((1 + 2 * z * log_total) * column / total) - torch.where(here, column, 0.0)
    return sums, gradient.to(logits.dtype)


def _shared_sums_and_gradient(logits: Tensor, targets: Tensor, weights: Tensor, z: float, ranks: Along) -> tuple[Tensor, Tensor]:
    """`_sums_and_gradient` where ranks share the vocabulary: targets count from this rank's first token, and may lie outside of its own."""
    values, column = logits.float(), weights[:, None]
    own = (weights != 0) & (targets >= 0) & (targets < values.shape[-1])
    target = torch.where(own, targets, 0)[:, None]
    empty = values.shape[-1] == 0
    peak = values.new_full((len(values), 1), float("-inf")) if empty else values.amax(-1, keepdim=True)
    peak = reduced(peak, ranks, "max")
    powers = torch.exp(values - peak)
    chosen = torch.zeros_like(peak) if empty else torch.where(own[:, None], values.gather(-1, target), 0.0)
    total, chosen = reduced(torch.stack((powers.sum(-1, keepdim=True), chosen)), ranks).unbind()
    log_total = total.log() + peak
    sums = torch.stack((((log_total - chosen) * column).sum(), (log_total.square() * column).sum()))
    here = own[:, None] & (torch.arange(values.shape[-1], device=values.device)[None, :] == target)
    gradient = powers * ((1 + 2 * z * log_total) * column / total) - torch.where(here, column, 0.0)
    return sums, gradient.to(logits.dtype)
