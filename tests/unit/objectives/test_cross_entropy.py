"""The chunked cross-entropy equals autograd through the full logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bessemer.core import device
from bessemer.objectives._cross_entropy import auto_chunk, cross_entropy

TOKENS, WIDTH, VOCABULARY = 37, 24, 53


def inputs(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(TOKENS, WIDTH, generator=draw), torch.randn(VOCABULARY, WIDTH, generator=draw)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)
    weights = torch.rand(TOKENS, generator=draw) * (torch.arange(TOKENS) % 3 > 0)
    offset = torch.randn(VOCABULARY, generator=draw) if bias else None
    return hidden.to(dtype), weight.to(dtype), offset, targets, weights


def plain(hidden, weight, bias, targets, weights, z):
    logits = F.linear(hidden, weight, bias).float()
    squares = (logits.logsumexp(-1).square() * weights).sum()
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() + z * squares


@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
def test_loss_and_gradients_equal_autograd(z, bias, chunk):
    found, wanted = [], []
    for function, kept in ((cross_entropy, found), (plain, wanted)):
        hidden, weight, offset, targets, weights = inputs(bias)
        leaves = [x.requires_grad_() for x in (hidden, weight, offset) if x is not None]
        loss = (
            function(hidden, weight, offset, targets, weights, z, chunk)[0]
            if function is cross_entropy
            else function(hidden, weight, offset, targets, weights, z)
        )
        (loss * 0.37).backward()
        kept += [loss.detach() / TOKENS, *(x.grad for x in leaves)]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-6 * max(1.0, float(theirs.abs().max()))


def test_a_tied_head_gets_both_gradients():
    grads = []
    for tied in (True, False):
        draw = torch.Generator().manual_seed(3)
        table = torch.randn(VOCABULARY, WIDTH, generator=draw, requires_grad=True)
        tokens, targets = torch.randint(0, VOCABULARY, (2, TOKENS), generator=draw)
        hidden, weights = table[tokens].tanh(), torch.ones(TOKENS)
        loss = cross_entropy(hidden, table, None, targets, weights, 0.0, 8)[0] if tied else plain(hidden, table, None, targets, weights, 0.0)
        grads.append(torch.autograd.grad(loss, table)[0])
    assert (grads[0] - grads[1]).abs().max() < 1e-5


def test_huge_logits_and_absurd_targets_where_nothing_counts():
    hidden, weight, _, targets, weights = inputs(False)
    targets = torch.where(weights == 0, -100, targets)
    hidden.requires_grad_()
    loss, _, _ = cross_entropy(hidden * 1e4, weight, None, targets, weights, 0.0, 10)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()
    assert not hidden.grad[weights == 0].any()


def test_frozen_head_and_evaluation():
    hidden, weight, _, targets, weights = inputs(False)
    with torch.no_grad():
        quiet = cross_entropy(hidden, weight, None, targets, weights, 0.0, 10)[0]
    hidden.requires_grad_()
    loss = cross_entropy(hidden, weight, None, targets, weights, 0.0, 10)[0]
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert torch.equal(loss.detach(), quiet)


def test_second_backward_is_right_when_announced_and_else_refused():
    hidden, weight, _, targets, weights = inputs(False)
    loss = cross_entropy(hidden.requires_grad_(), weight, None, targets, weights, 0.0, 10)[0]
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=again)[0].clone() for again in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="already"):
        loss.backward()


@pytest.mark.skipif(device.compute_dtype() != torch.bfloat16, reason="no bfloat16 here")
def test_bfloat16_is_near_float32_and_autocast_is_honoured():
    hidden, weight, _, targets, weights = inputs(False)
    exact = plain(hidden, weight, None, targets, weights, 0.0)
    low = cross_entropy(*(x.bfloat16().requires_grad_() for x in (hidden, weight)), None, targets, weights, 0.0, 10)
    assert low[0].dtype == torch.float32
    assert abs(float(low[0].detach() / exact) - 1) < 0.02
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = cross_entropy(hidden, weight, None, targets, weights, 0.0, 10)[0]
    cast.backward()
    assert cast == low[0].detach()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("tokens", "vocabulary"), [(10, 8192), (4096, 8192), (65536, 151936), (1, 3)])
def test_auto_chunk_holds_little(tokens, vocabulary):
    assert 1 <= auto_chunk(tokens, vocabulary) <= tokens
    assert auto_chunk(tokens, vocabulary) * vocabulary <= max(1 << 22, 64 * vocabulary)
