"""Dataset decomposition: powers of two, one size to a row, and the curriculum's order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.errors import RecipeError
from bessemer.data.loader import Loader
from bessemer.data.pack.decomposition import decomposition
from tests.unit.data.token_stores import small_tokens


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=60), power=st.integers(0, 6), cycles=st.integers(1, 4))
def test_rows_hold_pieces_of_one_power_of_two_and_every_row_has_one_turn(lengths, power, cycles):
    rows = decomposition(np.array(lengths), 1 << power, cycles=cycles)
    for row in range(rows.count):
        sizes = set(rows.size[rows.offsets[row] : rows.offsets[row + 1]].tolist())
        assert sizes == {1 << int(rows.levels[row])}
    assert sorted(rows.turns.tolist()) == sorted(rows.levels.tolist())
    digits = [bin(n % (1 << power)).count("1") + n // (1 << power) for n in lengths]
    assert len(rows.size) == sum(digits)  # as few pieces as powers of two allow


def test_no_place_is_padded_but_in_the_last_row_of_each_size():
    lengths = np.random.default_rng(0).integers(1, 500, 400)
    rows = decomposition(lengths, 128)
    sums = np.add.reduceat(rows.size, rows.offsets[:-1])
    for level in np.unique(rows.levels):
        assert (sums[rows.levels == level] < 128).sum() <= 1


def test_each_cycle_goes_from_short_to_long():
    lengths = np.random.default_rng(1).integers(1, 1024, 3000)
    rows = decomposition(lengths, 256, cycles=4, skew=4.0, together=1)
    for part in np.array_split(rows.turns, 4):
        quarters = [each.mean() for each in np.array_split(part, 4)]
        assert all(later > earlier - 0.05 for earlier, later in itertools.pairwise(quarters))
        assert quarters[-1] - quarters[0] > 0.5
    even = decomposition(lengths, 256, curriculum="uniform", cycles=4, together=1)
    means = [each.mean() for each in np.array_split(even.turns, 16)]
    assert max(means) - min(means) < 0.2
    back = decomposition(lengths, 256, curriculum="shrink", cycles=1, together=1).turns
    assert back[: len(back) // 4].mean() > back[-len(back) // 4 :].mean()


def test_the_loader_keeps_the_curriculum_and_reads_each_row_once_an_epoch():
    made = Loader(small_tokens(), length=32, mix=None, seed=5, pack={"name": "decomposition", "cycles": 2})
    rows = made._views[0][1]._levels[0]
    for epoch in range(2):
        found, _ = made.rows_at(np.arange(epoch * made.epoch, (epoch + 1) * made.epoch))
        assert sorted(found.tolist()) == list(range(made.epoch))
        sizes = made.rows.size[made.rows.offsets[found]]
        assert (np.log2(sizes).astype(int) == rows.turns).all()
    assert (made.rows_at(np.arange(made.epoch))[0] != made.rows_at(np.arange(made.epoch, 2 * made.epoch))[0]).any()


def test_blocks_of_one_size_come_together():
    lengths = np.random.default_rng(1).integers(1, 1024, 3000)
    turns = decomposition(lengths, 256, together=8).turns
    changes = np.flatnonzero(np.diff(turns)) + 1
    assert np.mean(np.diff(changes) % 8 == 0) > 0.95


def test_short_pieces_may_be_left_out():
    rows = decomposition(np.array([7, 40, 100]), 64, shortest=8)
    assert sorted(rows.size.tolist()) == [8, 32, 32, 64]


@pytest.mark.parametrize("options", [{"cycles": 0}, {"skew": 0.5}, {"together": 0}, {"shortest": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(RecipeError, match="at least"):
        decomposition(np.array([5]), 8, **options)
