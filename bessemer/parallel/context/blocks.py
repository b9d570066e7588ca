"""Attention of some queries to some of their keys, so that results for all keys can be put together from several.

Softmax over keys in parts: each part gives its own mixture and the log of its denominator, and parts are merged weighted by their
denominators (Dao et al. 2022, "FlashAttention"; Liu et al. 2023, "Ring attention"). Backward needs only the final denominator.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bessemer.parallel.context.plan import Span


class Mixture:
    """What queries have mixed so far: float32 [rows, kv_heads, queries per kv head, queries, head], and the log of its denominator."""

    def __init__(self, query: Tensor) -> None:
        self.mixed = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        self.log_total = torch.full(query.shape[:-1], float("-inf"), dtype=torch.float32, device=query.device)

    def add(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> None:
        """Mixes in more keys.

        Args:
            query: [rows, kv_heads, queries per kv head, queries, head].
            key, value: [rows, kv_heads, keys, head].
            span: which of them each query looks at.
        """
        for here, there, scores in _scores(query, key, span):
            log_total = scores.logsumexp(-1)
            share = torch.exp(scores - _finite(log_total)[..., None]).to(value.dtype)
            found = _product(share, value[:, :, there]).float()
            before = self.log_total[..., here]
            after = torch.logaddexp(before, log_total)
            safe = _finite(after)
            self.mixed[..., here, :] = self.mixed[..., here, :] * torch.exp(before - safe)[..., None] + found * torch.exp(log_total - safe)[..., None]
            self.log_total[..., here] = after


class Slope:
    """The gradient of a mixture: what its queries get, and what keys and values get from them.

    Args:
        query, mixed, log_total: as in `Mixture`, over all keys.
        grad: of the mixture, in the query's type.
    """

    def __init__(self, query: Tensor, mixed: Tensor, log_total: Tensor, grad: Tensor) -> None:
        self.query, self.log_total, self.grad = query, log_total, grad
        self.along = (grad.float() * mixed.float()).sum(-1, keepdim=True)
        self.queries = torch.zeros(query.shape, dtype=torch.float32, device=query.device)

    def add(self, key: Tensor, value: Tensor, span: Span, keys: Tensor, values: Tensor) -> None:
        """Adds the part of some keys, and to `keys` and `values`, float32, the gradients of these."""
        scale = key.shape[-1] ** -0.5
        for here, there, scores in _scores(self.query, key, span):
            share = torch.exp(scores - _finite(self.log_total[..., here])[..., None])
            grad = self.grad[..., here, :]
            pull = _product(grad, value[:, :, there].mT).float()
            change = (share * (pull - self.along[..., here, :]) * scale).to(key.dtype)
            self.queries[..., here, :] += _product(change, key[:, :, there])
            keys[:, :, there] += _pulled(change, self.query[..., here, :])
            values[:, :, there] += _pulled(share.to(grad.dtype), grad)


def grouped(query: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, queries, head] as [rows, kv_heads, queries per kv head, queries, head]."""
    return query.unflatten(1, (kv_heads, -1))


def _scores(query: Tensor, key: Tensor, span: Span) -> Iterator[tuple[slice, slice, Tensor]]:
    """Block by block the queries' and the keys' places and their scores, -inf where a query does not look: float32."""
    scale = query.shape[-1] ** -0.5
    for start, stop, begin, end in span.blocks:
        here, there = slice(start, stop), slice(begin, end)
        scores = _product(query[..., here, :], key[:, :, there].mT).float() * scale
        place = torch.arange(begin, end, device=key.device)
        first, last = span.first[:, None, None, here, None], span.last[:, None, None, here, None]
        yield here, there, torch.where((place >= first) & (place < last), scores, float("-inf"))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[rows, kv_heads, group, a, b] times [rows, kv_heads, b, c]."""
    return torch.matmul(left.flatten(2, 3), right).unflatten(2, left.shape[2:4])


def _pulled(left: Tensor, right: Tensor) -> Tensor:
    """[rows, kv_heads, group, a, b] transposed times [rows, kv_heads, group, a, c], summed over the group: [rows, kv_heads, b, c]."""
    return torch.matmul(left.flatten(2, 3).mT, right.flatten(2, 3))


def _finite(log_total: Tensor) -> Tensor:
    """0 for a query that looks at nothing, so that its share of everything is 0 and not undefined."""
    return torch.where(log_total == float("-inf"), 0.0, log_total)
