import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.registry import choose, names
from bessemer.data.mix._online import Online
from bessemer.data.mixture import PERIOD, Mixture, quantise

SHARES = st.lists(st.floats(0, 1).map(lambda x: x if x > 1e-12 else 0.0), min_size=1, max_size=9).filter(lambda each: sum(each) > 1e-3)


@settings(max_examples=40, deadline=None)
@given(shares=SHARES, period=st.integers(50, 700))
def test_any_window_holds_each_sources_share(shares, period):
    mixture = Mixture(shares, period)
    k = np.count_nonzero(mixture.counts)
    turns = mixture.at(np.arange(3 * period))[0]
    counts = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
    drift = counts - (np.arange(1, 3 * period + 1)[:, None] * mixture.counts / period)
    assert np.abs(drift).max() <= 1 - 1 / (2 * max(k, 2) - 2) + 1e-9
    widest = drift.max(axis=0) - drift.min(axis=0)  # the worst of all windows
    assert widest.max() < 2
    if k <= 2:
        assert widest.max() <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(shares=SHARES)
def test_quantised_shares_sum_to_the_period_and_leave_nobody_out(shares):
    counts = quantise(shares, PERIOD)
    share = np.array(shares) / sum(shares)
    assert counts.sum() == PERIOD
    assert ((counts > 0) == (share > 0)).all()
    assert np.abs(counts - share * PERIOD).max() <= 1 + len(shares)  # the raised ones are taken from the largest
    large = share * PERIOD >= 1
    if large[share > 0].all():
        assert np.abs(counts - share * PERIOD).max() < 1


def test_four_decimals_are_kept_exactly():
    assert quantise([0.7, 0.2999, 0.0001], PERIOD).tolist() == [7000, 2999, 1]


@settings(max_examples=30, deadline=None)
@given(shares=SHARES, start=st.integers(0, 10**15), size=st.integers(1, 300))
def test_each_source_is_counted_without_gap_anywhere(shares, start, size):
    mixture = Mixture(shares, 500)
    source, index = mixture.at(np.arange(start, start + size))
    for each in np.unique(source):
        mine = index[source == each]
        assert (np.diff(mine) == 1).all()
    whole, ranks = mixture.at(np.arange(1500))
    assert all((ranks[whole == each] == np.arange((whole == each).sum())).all() for each in np.unique(whole))


@pytest.mark.parametrize("method", names("data/mix"))
def test_every_method_gives_shares_that_sum_to_one(method):
    spans = [{"until": 0.5, "mix": "proportional"}, {"mix": "temperature"}]
    options = {"fixed": {"weights": {"a": 3, "c": 1.5}}, "curriculum": {"spans": spans}}
    made = choose("data/mix", {"name": method, **options.get(method, {})})({"a": 100, "b": 0, "c": 7})
    shares = made.shares if isinstance(made, Online) else made
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["b"] == 0
    assert list(shares) == ["a", "b", "c"]


def test_temperature_flattens():
    sizes = {"large": 900, "small": 100}
    one, two = (choose("data/mix", {"name": "temperature", "temperature": t})(sizes) for t in (1.0, 2.0))
    assert one["small"] == pytest.approx(0.1)
    assert two["small"] == pytest.approx(0.25)
