"""Randomness is a function of its key."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bessemer.core import rng


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(rng.permute(numpy.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(1, 2**62), st.integers(0, 2**63 - 1), st.data())
def test_permute_is_one_to_one_far_out(size, key, data):
    index = numpy.unique(numpy.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)), dtype=numpy.int64))
    out = rng.permute(index, size, key)
    assert len(set(out.tolist())) == len(index)
    assert ((out >= 0) & (out < size)).all()


def test_permute_answers_for_each_index_alone():
    whole = rng.permute(numpy.arange(1000), 1000, 7)
    assert rng.permute(numpy.array([[3, 999], [500, 3]]), 1000, 7).tolist() == [[whole[3], whole[999]], [whole[500], whole[3]]]


def test_permute_leaves_its_input_alone_and_needs_elements():
    index = numpy.arange(10)
    rng.permute(index, 10, 1)
    assert index.tolist() == list(range(10))
    with pytest.raises(ValueError, match="at least one"):
        rng.permute(index, 0, 1)


def test_permute_mixes():
    places = rng.permute(numpy.arange(10_000), 10_000, 3)
    assert abs(numpy.corrcoef(numpy.arange(10_000), places)[0, 1]) < 0.05
    assert (numpy.diff(places) == 1).mean() < 0.01
    other = rng.permute(numpy.arange(10_000), 10_000, 4)
    assert (places == other).mean() < 0.01


def test_keys_depend_on_every_argument():
    keys = [
        rng.key(1, "a"),
        rng.key(2, "a"),
        rng.key(1, "b"),
        rng.key(1, "a", 0),
        rng.key(1, "a", "0", 1),
        rng.key(1, "a", 0, 1, 2),
        rng.key(1, "a", 1, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)


def test_draws_depend_on_the_key_alone():
    torch.manual_seed(1)
    first = torch.rand(3, generator=rng.generator(5, "x", 2))
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(first, torch.rand(3, generator=rng.generator(5, "x", 2)))
    assert rng.numpy_generator(5, "x").random() == rng.numpy_generator(5, "x").random()


def test_keys_are_the_same_in_another_process():
    code = "from bessemer.core import rng; print(rng.key(3, 'order', 'a', 4))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77", "PATH": ""})
    assert int(out.stdout) == rng.key(3, "order", "a", 4)
