"""Quantised state: its levels, its two ways of computing, its error."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from bessemer.core.registry import choose
from bessemer.optim import _blocks, _native
from bessemer.plan.held import Ones, state
from bessemer.train.optimizers import TAGS

CASES = [("8bit", True), ("8bit", False), ("4bit", True), ("4bit", False)]


def packed(values, states, signed):
    state = {}
    _blocks.zeros(state, "a", values, states)
    return _blocks.held(state, "a", signed)


def numbers(signed, count=1 << 14):
    made = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=made) * torch.randn(count, generator=made).exp() ** 2
    values[:300] = 0.0
    values[300:310] = 1e-30
    return values if signed else values.square()


@pytest.mark.parametrize(("states", "signed"), CASES)
def test_kernels_and_torch_operations_agree_bit_by_bit(states, signed, monkeypatch):
    values = numbers(signed)
    native, plain = packed(values, states, signed), packed(values, states, signed)
    if _native.library() is None:
        pytest.skip("no C compiler here")
    native.encode(values)
    decoded = native.decode(torch.empty_like(values))
    monkeypatch.setattr(_native, "library", lambda: None)
    plain.encode(values)
    assert torch.equal(native.codes, plain.codes)
    assert torch.equal(native.scales, plain.scales)
    assert torch.equal(decoded, plain.decode(torch.empty_like(values)))


@pytest.mark.parametrize(("states", "signed"), CASES)
def test_every_level_decodes_to_itself_and_numbers_go_to_the_nearest(states, signed):
    bits = 8 if states == "8bit" else 4
    table = _blocks._levels(bits, signed).table
    values = table.repeat(4096 // len(table))
    held = packed(values, states, signed)
    held.encode(values)
    assert torch.equal(held.decode(torch.empty_like(values)), values)
    draws = torch.rand(4096, generator=torch.Generator().manual_seed(1)) * (2 if signed else 1) - (1 if signed else 0)
    draws[:: _blocks.BLOCK[bits]] = 1.0  # so that every scale is 1
    held.encode(draws)
    nearest = (draws[:, None] - table).abs().amin(1)
    torch.testing.assert_close((held.decode(torch.empty_like(draws)) - draws).abs(), nearest, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("states", "signed"), CASES)
def test_a_part_is_coded_as_the_whole_is(states, signed):
    values = numbers(signed, 4096 * 2)
    whole, pieces = packed(values, states, signed), packed(values, states, signed)
    whole.encode(values)
    for start in range(0, values.numel(), 1024):
        pieces.encode(values[start : start + 1024], start)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.decode(torch.empty(1024), 2048), whole.decode(torch.empty_like(values))[2048:3072])


def test_fresh_state_is_zero():
    for states, signed in CASES:
        values = torch.ones(4096)
        assert packed(values, states, signed).decode(torch.full((4096,), 7.0)).count_nonzero() == 0


def test_small_and_uneven_tensors_stay_full():
    assert not _blocks.fits(4095, "8bit")
    assert not _blocks.fits(4097, "8bit")
    assert not _blocks.fits(1 << 20, "full")
    assert _blocks.fits(4096, "4bit")
    assert _blocks.stored_bytes(4096, "8bit", 4) == 4096 + 4 * 16
    assert _blocks.stored_bytes(4096, "4bit", 4) == 2048 + 4 * 32
    assert _blocks.stored_bytes(100, "8bit", 2) == 200


@pytest.mark.parametrize(("states", "signed"), CASES)
def test_tensors_without_memory_are_left_to_torch(states, signed):
    """A dry run's: the kernels would write to address 0. The tables that it makes have memory, for whoever comes later."""
    _blocks._levels.cache_clear()
    with Ones(allow_non_fake_inputs=True):
        values = torch.ones(4096)
        held = packed(values, states, signed)
        held.encode(values)
        assert held.decode(torch.empty(4096)).shape == (4096,)
    assert not any(isinstance(t, FakeTensor) for t in _blocks._levels(held.bits, signed))
    weight, real = torch.nn.Parameter(torch.ones(4096)), torch.ones(4096)
    assert not _blocks.adamw(weight, real, held, held, [0.1] * 6)
    test_every_level_decodes_to_itself_and_numbers_go_to_the_nearest(states, signed)


@pytest.mark.parametrize("name", ["adamw8bit", "adamw4bit", "galore8bit"])
def test_a_dry_run_counts_the_bytes_that_a_rule_documents(name):
    model = torch.nn.Linear(64, 256, bias=False)
    choice = choose("optim", name, TAGS)
    counted = state([choice], model, Ones(allow_non_fake_inputs=True))
    rule = choice([torch.nn.Parameter(torch.empty(256, 64))])
    assert counted is not None
    assert sum(size for entries in counted.values() for _, size in entries) == rule.state_bytes((256, 64))


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize(("states", "signed"), CASES)
def test_what_is_no_number_spoils_its_own_block_only(states, signed, bad):
    """Its code is some code: no place outside the tables is looked at, which ended the program."""
    values = numbers(signed)
    clean, spoilt = packed(values, states, signed), packed(values, states, signed)
    clean.encode(values)
    block = _blocks.BLOCK[clean.bits]
    changed = values.clone()
    changed[5 * block : 6 * block] = bad
    changed[7 * block + 3] = bad
    spoilt.encode(changed)
    kept = torch.ones(len(values) // block, dtype=torch.bool)
    kept[[5, 7]] = False
    decoded = [held.decode(torch.empty_like(values)).view(-1, block)[kept] for held in (clean, spoilt)]
    assert torch.equal(*decoded)
