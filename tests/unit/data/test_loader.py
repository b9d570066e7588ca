import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.data.loader import Loader
from bessemer.data.prefetch import Prefetch
from tests.unit.data.token_stores import small_tokens

MIX = {"name": "fixed", "weights": {"code": 2, "prose": 5, "rare": 1}}


def loader(**options):
    return Loader(small_tokens(), **({"length": 48, "mix": MIX, "seed": 3} | options))


def same(a, b):
    streams = ("tokens", "positions", "targets", "samples", "sources")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in streams) and torch.equal(a.weights["next_token"], b.weights["next_token"])


def segments(batch):
    return batch.segments if batch.segments is not None else torch.ones_like(batch.tokens)


def stretches(batch, row):
    """Each segment of a row as (tokens read, targets, positions)."""
    number = segments(batch)[row]
    for each in range(1, int(number.max()) + 1):
        at = number == each
        yield batch.tokens[row][at].tolist(), batch.targets[row][at].tolist(), batch.positions[row][at].tolist()


@pytest.mark.parametrize("pack", ["best_fit", {"name": "concat", "masked": True}])
def test_an_epoch_reads_every_training_token_once(pack):
    tokens = small_tokens()
    made = loader(pack=pack, mix=None)
    seen = []
    for start in range(0, made.epoch, 5):
        batch = made.batch(start, min(5, made.epoch - start))
        for row in range(batch.rows):
            for read, targets, positions in stretches(batch, row):
                assert positions == list(range(len(targets)))
                assert read[1:] == targets[:-1]
                seen.append((read[0] if read[0] != tokens.begin else None, tuple(targets)))
        assert torch.equal(batch.weights["next_token"] == 1, segments(batch) > 0)
    total = sum(len(targets) for _, targets in seen)
    assert total == tokens.lengths[~tokens.held_out].sum()
    whole = {tuple(tokens.read(d)) for d in tokens.documents("train")}
    starts = [targets for before, targets in seen if before is None]
    assert len(starts) == len(tokens.documents("train"))
    assert all(any(document[: len(targets)] == targets for document in whole) for targets in starts)
    text = {tuple(each) for each in whole}
    for before, targets in seen:  # a piece from the middle reads the token before it
        if before is not None:
            assert any((before, *targets) == document[i : i + len(targets) + 1] for document in text for i in range(len(document) - len(targets)))


def test_masked_rows_mark_padding_and_whole_rows_need_no_segments():
    made = loader(length=8, mix=None)
    counts = np.diff(made.rows.offsets)
    full = made.rows.size[made.rows.offsets[:-1]] == 8
    kinds = set()
    for start in range(made.epoch):
        batch = made.batch(start, 1)
        row = int(made.rows_at(np.array([start]))[0][0])
        assert (batch.segments is None) == bool(full[row] and counts[row] == 1)
        kinds.add(batch.segments is None)
        if batch.segments is not None:
            padding = batch.segments == 0
            assert (batch.weights["next_token"][padding] == 0).all()
            assert (batch.tokens[padding] == small_tokens().pad).all()
    assert kinds == {True, False}


def test_concat_reads_a_row_as_one_text():
    made = loader(pack="concat", mix=None)
    batch = made.batch(0, 8)
    assert batch.segments is None
    assert torch.equal(batch.positions[0], torch.arange(48))
    assert (batch.tokens[:, 1:] == small_tokens().begin).any()
    ends = batch.targets[:, :-1] == small_tokens().end
    assert torch.equal(batch.tokens[:, 1:][ends], torch.full_like(batch.tokens[:, 1:][ends], small_tokens().begin))


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 10**7), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_batch_is_the_same_however_it_is_asked_for(start, cuts):
    made = shared()
    whole = made.batch(start, sum(cuts))
    at = 0
    for size in cuts:
        part = Loader.batch(made, start + at, size)
        for row in range(size):
            one, other = whole.rows_of(at + row, at + row + 1), part.rows_of(row, row + 1)
            assert same(one, other)
            assert torch.equal(segments(one), segments(other))
        at += size


def test_a_new_loader_goes_on_where_another_stopped():
    one, other = loader(), loader()
    for start in (0, 7, 10_003, 123_456_789):
        assert same(one.batch(start, 6), other.batch(start, 6))
    assert not same(one.batch(0, 6), loader(seed=4).batch(0, 6))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_ranks_share_the_same_global_batch(ranks):
    made = shared()
    whole = made.batch(990, 6)
    parts = [made.batch(990, 6, rank=rank, ranks=ranks) for rank in range(ranks)]
    for name in ("tokens", "targets", "positions", "samples", "sources"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert max(part.rows for part in parts) - min(part.rows for part in parts) <= 1


def test_no_row_comes_twice_before_all_of_its_group_came_once():
    made = shared()
    row, group = made.rows_at(np.arange(6000))
    for each, name in enumerate(made.names):
        mine = row[group == each]
        count = made.rows_of[name]
        epochs = [mine[i : i + count] for i in range(0, len(mine) - count, count)]
        assert len(epochs) > 2
        assert all(len(set(epoch.tolist())) == count for epoch in epochs)
        assert any((epochs[0] != later).any() for later in epochs[1:])
    shares = np.bincount(group, minlength=3) / 6000
    assert np.abs(shares - [0.25, 0.625, 0.125]).max() < 1e-3


def test_groups_hold_only_their_own_documents():
    tokens = small_tokens()
    made = shared()
    for number, name in enumerate(made.names):
        first, count = made._views[0][1].firsts[number], made._views[0][1].counts[number]
        mine = made.rows.document[made.rows.offsets[first] : made.rows.offsets[first + count]]
        assert {tokens.domains[i] for i in tokens.domain[mine]} == {name}
        assert not tokens.held_out[mine].any()


def test_by_source_and_only_some():
    made = loader(mix="proportional", by="source", only=["s0", "s2"])
    assert made.names == ["s0", "s2"]
    assert sum(made.shares.values()) == pytest.approx(1)


def test_prefetch_answers_as_the_loader_and_ends():
    import threading

    made = shared()
    with Prefetch(made, depth=3) as ahead:
        for start in [0, 5, 10, 15, 3, 8, 1000, 1005]:
            assert same(ahead.batch(start, 5), made.batch(start, 5))
        assert same(ahead.batch(1010, 5, rank=1, ranks=2), made.batch(1010, 5, rank=1, ranks=2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_raises_what_its_source_raised_and_not_before():
    class Broken:
        def batch(self, start, rows, *, rank=0, ranks=1):
            if start >= 4:
                raise OSError("gone")
            return shared().batch(start, rows)

    with Prefetch(Broken()) as ahead:
        ahead.batch(0, 2)
        ahead.batch(2, 2)
        with pytest.raises(OSError, match="gone"):
            ahead.batch(4, 2)


_made = {}


def shared():
    if "loader" not in _made:
        _made["loader"] = loader()
    return _made["loader"]
