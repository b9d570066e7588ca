import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.registry import choose, names
from bessemer.data.pack.best_fit import best_fit

LENGTHS = st.lists(st.integers(0, 70), max_size=60)


def pieces(rows):
    return [(rows.document[i], rows.start[i], rows.size[i]) for i in range(len(rows.document))]


@pytest.mark.parametrize("method", names("data/pack"))
@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 33))
def test_every_token_stands_in_exactly_one_row(method, lengths, length):
    rows = choose("data/pack", method)(np.array(lengths, dtype=np.int64), length)
    covered = sorted((d, s + i) for d, s, n in pieces(rows) for i in range(n))
    assert covered == [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    assert (rows.size > 0).all()
    sums = np.add.reduceat(rows.size, rows.offsets[:-1]) if rows.count else np.zeros(0)
    assert (sums <= length).all()
    assert (np.diff(rows.offsets) > 0).all()
    assert rows.padding == pytest.approx(1 - sum(lengths) / (rows.count * length) if rows.count else 0)


def naive(lengths, length):
    """Best-fit decreasing, one document at a time."""
    rows: list[int] = []
    for size in sorted((min(length, n - s) for n in lengths for s in range(0, n, length)), reverse=True):
        fits = [space for space in rows if space >= size]
        if fits:
            rows[rows.index(min(fits))] -= size
        else:
            rows.append(length - size)
    return sorted(rows)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 40))
def test_best_fit_is_best_fit_decreasing(lengths, length):
    rows = best_fit(np.array(lengths, dtype=np.int64), length)
    left = length - np.add.reduceat(rows.size, rows.offsets[:-1]) if rows.count else np.zeros(0, dtype=int)
    assert sorted(left.tolist()) == naive(lengths, length)


def test_best_fit_cuts_only_what_is_longer_than_a_row():
    rows = best_fit(np.array([5, 12, 8, 3, 30]), 10)
    cut = {int(d) for d, s, n in pieces(rows) if s}
    assert cut == {1, 4}


def test_concat_pads_only_the_end_and_may_be_masked():
    rows = choose("data/pack", {"name": "concat"})(np.array([7, 5, 9]), 4)
    assert rows.count == 6
    assert rows.size.sum() == 21
    assert not rows.masked
    assert choose("data/pack", {"name": "concat", "masked": True})(np.array([7, 5]), 4).masked


def test_packing_is_the_same_each_time_and_fast():
    import time

    lengths = np.random.default_rng(0).geometric(1 / 300, 300_000)
    started = time.perf_counter()
    rows = best_fit(lengths, 2048)
    seconds = time.perf_counter() - started
    again = best_fit(lengths, 2048)
    assert (rows.document == again.document).all()
    assert (rows.offsets == again.offsets).all()
    assert rows.padding < 0.001
    assert seconds < 3  # 100,000 documents a second on a very busy machine
