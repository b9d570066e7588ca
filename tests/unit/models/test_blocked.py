"""Attention with the blocked backward: torch's own gradients, with and without documents."""

import pytest
import torch
from torch.nn import functional as F

from bessemer.models.layers.blocked import blocked_attention
from bessemer.models.layers.mask import packed


def tensors(length, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, length, 16, generator=draw).to(dtype).requires_grad_() for _ in range(4)]


def segments(length):
    return torch.stack([torch.arange(length) // 37, torch.where(torch.arange(length) < length // 2, 1, 2)])


@pytest.mark.parametrize("length", [96, 128, 300])
@pytest.mark.parametrize("documents", [False, True])
def test_gradients_equal_torchs_in_float32(length, documents):
    mask = packed(segments(length), None) if documents else None
    query, key, value, grad = tensors(length, torch.float32)
    found = blocked_attention(query, key, value, mask)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found, (query, key, value), grad)
    theirs = torch.autograd.grad(expected, (query, key, value), grad)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_torchs_own():
    exact = tensors(256, torch.float32)
    reference = torch.autograd.grad(F.scaled_dot_product_attention(*exact[:3], is_causal=True), exact[:3], exact[3])
    errors = []
    for function in (lambda q, k, v: blocked_attention(q, k, v, None), lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)):
        rough = tensors(256, torch.bfloat16)
        found = torch.autograd.grad(function(*rough[:3]), rough[:3], rough[3])
        errors.append([float((f.float() - r).norm() / r.norm()) for f, r in zip(found, reference, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.5 * theirs + 0.002
