"""Attention over columns on several ranks is attention over all columns in one: forward, backward, for any documents."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.models.layers import mask as masks
from bessemer.parallel.context import plan as plans
from bessemer.parallel.context.columns import Axis
from bessemer.parallel.context.plan import Plan

CASES = [
    # length, heads, kv_heads, window, packed
    (61, 8, 8, None, True),
    (64, 8, 4, None, False),
    (53, 8, 2, 9, True),
    (29, 9, 3, None, True),
    (7, 8, 8, None, True),
    (3, 8, 8, 2, False),
]
METHODS = ["ring", "ulysses", "both", "gather", "auto"]


def documents(length: int, rows: int = 3, seed: int = 5) -> torch.Tensor:
    """Ragged documents, long and short, padding at the end of one row and in the middle of another."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        at, number = 0, 1
        while at < length:
            size = min(int(torch.randint(1, 5 + 12 * row, (1,), generator=draw)), length - at)
            found[row, at : at + size] = number
            at, number = at + size, number + 1
    found[0, length - length // 5 :] = 0
    found[1, length // 3 : length // 3 + 2] = 0
    found[1, length // 3 + 2 :] += 1  # what follows is another document
    return found


def batch(length: int, packed: bool, rows: int = 3) -> Batch:
    segments = documents(length, rows) if packed else None
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 64, (rows, length), generator=draw)
    positions = torch.arange(length).expand(rows, length)
    if segments is not None:
        positions = positions - Plan(segments, rows, length, 1).starts
    weights = torch.ones(rows, length) if segments is None else (segments != 0).float()
    return Batch(tokens, positions, segments, (tokens * 7 + 1) % 64, {"next_token": weights}, samples=torch.arange(rows))


def whole(length, heads, kv_heads, window, packed):
    """What one process computes: output and the gradients of query, key, value; padding aside."""
    given, draw = inputs(length, heads, kv_heads)
    given = [each.requires_grad_() for each in given]
    segments = documents(length) if packed else torch.ones(3, length, dtype=torch.int64)
    mixed = F.scaled_dot_product_attention(*given, attn_mask=masks.packed(segments, window), enable_gqa=heads != kv_heads)
    mixed = torch.where((segments != 0)[:, None, :, None], mixed, 0.0)
    return [mixed.detach(), *torch.autograd.grad((mixed * draw).sum(), given)]


def inputs(length, heads, kv_heads):
    draw = torch.Generator().manual_seed(7)
    shapes = [(3, n, length, 8) for n in (heads, kv_heads, kv_heads, heads)]
    *given, probe = (torch.randn(shape, generator=draw) for shape in shapes)
    return given, probe


def attend(method, cases):
    plans.QUERIES = 16  # several blocks, though rows are short
    axis, found = Axis(dist.group.WORLD, method), []
    for length, heads, kv_heads, window, packed in cases:
        cut = axis.cut(batch(length, packed))
        spread = cut.spread
        given, probe = inputs(length, heads, kv_heads)
        mine = [spread.mine(each.transpose(1, 2)).transpose(1, 2).contiguous().requires_grad_() for each in given]
        mixed = spread.attend(*mine, window)
        mixed = torch.where((cut.segments != 0)[:, None, :, None], mixed, 0.0)
        grads = torch.autograd.grad((mixed * spread.mine(probe.transpose(1, 2)).transpose(1, 2)).sum(), mine)
        found.append([spread.whole(each.detach().transpose(1, 2)).transpose(1, 2) for each in (mixed, *grads)])
    return found


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_attention_is_that_of_one_process(ranks, method, count):
    for found in ranks(attend, method, CASES, count=count):
        for case, got in zip(CASES, found, strict=True):
            for name, a, b in zip(("output", "query", "key", "value"), got, whole(*case), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda text, case=case, name=name: f"{case} {name}: {text}")


def bfloat16(method):
    axis = Axis(dist.group.WORLD, method)
    spread = axis.cut(batch(61, True)).spread
    given, _ = inputs(61, 8, 4)
    mine = [spread.mine(each.bfloat16().transpose(1, 2)).transpose(1, 2).requires_grad_() for each in given]
    mixed = spread.attend(*mine, None)
    mixed.float().square().sum().backward()
    return mixed.dtype, [each.grad.dtype for each in mine], spread.whole(mixed.detach().transpose(1, 2)).transpose(1, 2).float()


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_half_precision_stays_half(ranks, method):
    dtype, grads, mixed = ranks(bfloat16, method, count=2)[0]
    assert dtype == torch.bfloat16
    assert set(grads) == {torch.bfloat16}
    valid = (documents(61) != 0)[:, None, :, None]
    torch.testing.assert_close(torch.where(valid, mixed, 0.0), whole(61, 8, 4, None, True)[0], rtol=0.03, atol=0.03)


# ---- how columns are dealt out


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("length", [1, 5, 64, 1000])
def test_every_column_has_one_place(length, count):
    plan = Plan(documents(length), 3, length, count)
    for row in range(3):
        held = plan.columns[row].flatten()
        assert sorted(held[held < length].tolist()) == list(range(length))
        assert torch.equal(held[plan.inverse[row]], torch.arange(length))
        for rank in range(count):
            mine = plan.columns[row, rank]
            assert torch.equal(mine, mine.sort().values)
            assert int((mine == length).sum()) <= 1


@pytest.mark.parametrize(("window", "prefix"), [(None, False), (5, False), (None, True)])
def test_queries_look_where_the_mask_says(window, prefix):
    segments = documents(61)
    starts = Plan(segments, 3, 61, 1).starts
    open = (torch.arange(61) - starts < segments % 4) if prefix else None
    plan, allowed = Plan(segments, 3, 61, 4, open), torch.zeros(3, 62, 62, dtype=torch.bool)
    for here, there in itertools.product((range(0, 1), range(1, 4)), (range(0, 2), range(2, 3), range(3, 4))):
        span, keys = plan.span(here, there, window), torch.arange(plan.places * len(there))
        looks = (keys >= span.first[..., None]) & (keys < span.last[..., None])
        for row in range(3):
            allowed[row, plan.held(here)[row][:, None], plan.held(there)[row]] = looks[row]
    wanted = masks.packed(segments, window, open)[:, 0] & (segments != 0)[..., None]
    assert torch.equal(allowed[:, :61, :61], wanted)


def test_open_columns_elsewhere_are_refused():
    open = torch.zeros(1, 8, dtype=torch.bool)
    open[0, 3] = True
    with pytest.raises(RecipeError, match="stand after others"):
        Plan(None, 1, 8, 2, open)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_work_is_even_whatever_the_documents(count):
    length = 4096
    draw = torch.Generator().manual_seed(3)
    for mean in (60, 500, 4096):
        sizes = torch.randint(1, 2 * mean, (length,), generator=draw)
        segments = torch.repeat_interleave(torch.arange(1, length + 1), sizes)[None, :length]
        costs = Plan(segments, 1, length, count).costs()
        assert max(costs) / (sum(costs) / count) < 1.03, (mean, costs)


def test_little_is_multiplied_in_vain():
    """Blocks cover not much more than what counts: here, with rows of one document, at most an eighth more."""
    plan = Plan(None, 1, 8192, 4)
    for rank in range(4):
        spans = [plan.span(range(rank, rank + 1), range(other, other + 1), None) for other in range(4)]
        assert sum(span.work() for span in spans) < 1.125 * sum(span.pairs() for span in spans)


def test_a_batch_is_cut_and_nothing_is_lost():
    class Alone(Axis):
        def __init__(self, index, size):
            self.index, self.size = index, size

    given = batch(61, True)
    parts = [Alone(index, 4).cut(given) for index in range(4)]
    assert {part.tokens.shape for part in parts} == {(3, 16)}
    for name in ("next_token", "tokens"):
        assert sum(float(part.count(name)) for part in parts) == float(given.count(name))
    assert sorted(torch.cat([part.tokens[part.segments != 0] for part in parts]).tolist()) == sorted(given.tokens[given.segments != 0].tolist())
    assert {part.spread.longest for part in parts} == {int(given.positions.max()) + 1}
    given.weights["pair"] = torch.ones(3)
    with pytest.raises(RecipeError, match="'pair'"):
        Alone(0, 4).cut(given)


def refused():
    with pytest.raises(RecipeError, match="2 heads can't be exchanged by 4 ranks"):
        Axis(dist.group.WORLD, "ulysses").layout(2, 2, 64)
    return [Axis(dist.group.WORLD).layout(kv, 8, length) for kv, length in ((8, 64), (8, 9000), (2, 9000), (1, 9000))]


def test_the_method_follows_from_the_heads(ranks):
    assert ranks(refused, count=4)[0] == [None, (1, 4), (2, 2), (4, 1)]
