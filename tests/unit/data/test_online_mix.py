"""Mixes that change while a model trains: what is recorded decides the order, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bessemer.core.errors import ArtifactError, RecipeError
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.data.loader import Loader
from bessemer.data.mix._online import Online, View
from bessemer.data.pieces import Pieces
from bessemer.data.prefetch import Prefetch
from tests.unit.data.test_loader import same
from tests.unit.data.token_stores import small_tokens

SIZES = {"a": 1000, "b": 3000, "empty": 0, "c": 500}


def view(step=0, steps=1000, epochs=None, losses=None):
    def measure():
        assert losses is not None, "measured though nothing is due"
        return losses() if callable(losses) else losses

    return View(Progress(step=step, steps=steps), epochs or {}, measure)


def mix(name, sizes=SIZES, **options):
    made = choose("data/mix", {"name": name, **options})(sizes)
    assert isinstance(made, Online)
    return made


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=5, unique=True), seed=st.integers(0, 99))
def test_no_sample_of_a_source_is_left_out_or_repeated_at_a_change(cuts, seed):
    draw = np.random.default_rng(seed)
    pieces = Pieces([0.2, 0.5, 0.3])
    for cut in sorted(cuts):
        pieces = pieces.then(cut, draw.dirichlet([1, 1, 1]).tolist())
    source, index = pieces.at(np.arange(4000))
    for each in range(3):
        mine = index[source == each]
        assert mine.tolist() == list(range(len(mine)))
    assert pieces.counts(4000).tolist() == [int((source == each).sum()) for each in range(3)]
    again = Pieces.restored(json.loads(json.dumps(pieces.state())), 3)
    assert all((a == b).all() for a, b in zip(again.at(np.arange(4000)), (source, index), strict=True))


def test_a_change_leaves_what_came_before_and_its_shares_hold_after():
    first = Pieces([0.5, 0.5])
    second = first.then(700, [0.9, 0.1])
    assert (second.at(np.arange(700))[0] == first.at(np.arange(700))[0]).all()
    assert abs((second.at(np.arange(700, 1700))[0] == 0).mean() - 0.9) < 0.002
    assert (second.then(300, [0.9, 0.1]).at(np.arange(300, 1300))[0] == 0).mean() == pytest.approx(0.9, abs=0.002)


def test_pieces_of_other_sources_are_refused():
    with pytest.raises(ArtifactError, match="2 sources"):
        Pieces.restored(Pieces([0.5, 0.5]).state(), 3)


def followed(options, steps, losses, stop=None):
    """The batches a loader gives over some steps of 5 rows, and its state after `stop` of them."""
    made, batches, state = Loader(small_tokens(), length=48, seed=3, mix=options), [], None
    for step in range(steps):
        if step == stop:
            state = json.dumps(made.state())
        made.follow(Progress(step=step, steps=steps), 5 * step, lambda step=step: losses(step))
        batches.append(made.batch(5 * step, 5))
    return batches, state


def losses(step):
    return {"code": 3.0 / (1 + step), "prose": 2.0, "rare": 5.0 - 0.1 * step}


CASES = [
    {"name": "loss_driven", "every": 7},
    {"name": "aioli", "every": 12, "learn": 0.5},
    {"name": "capped", "epochs": 0.5},
    {"name": "curriculum", "spans": [{"until": 0.4, "mix": "proportional"}, {"mix": {"name": "fixed", "weights": {"rare": 1.0}}}]},
]


@pytest.mark.parametrize("options", CASES, ids=lambda each: each["name"])
def test_a_run_that_goes_on_from_a_recorded_state_reads_the_same(options):
    steps = 40
    expected, state = followed(options, steps, losses, stop=17)
    again = Loader(small_tokens(), length=48, seed=3, mix=options)
    again.restore(json.loads(state))
    for step in range(17, steps):
        again.follow(Progress(step=step, steps=steps), 5 * step, lambda step=step: losses(step))
        assert same(again.batch(5 * step, 5), expected[step])
    assert not all(same(Loader(small_tokens(), length=48, seed=3).batch(5 * step, 5), expected[step]) for step in range(steps))


def test_what_was_made_ahead_is_dropped_at_a_change():
    options = CASES[0]
    expected, _ = followed(options, 30, losses)
    made = Loader(small_tokens(), length=48, seed=3, mix=options)
    with Prefetch(made, depth=3) as ahead:
        for step in range(30):
            ahead.change(lambda step=step: made.follow(Progress(step=step, steps=30), 5 * step, lambda: losses(step)))
            assert same(ahead.batch(5 * step, 5), expected[step])


def test_a_capped_source_ends_in_the_batch_that_reaches_its_cap():
    made = Loader(small_tokens(), length=48, mix={"name": "capped", "base": "temperature", "caps": {"rare": 1.0}, "epochs": 9.0})
    read = []
    for step in range(200):
        made.follow(Progress(step=step, steps=200), 4 * step, dict)
        read += made.batch(4 * step, 4).sources.tolist()
    rows = made.rows_of["rare"]
    assert rows <= read.count(made.names.index("rare")) < rows + 4
    assert made.epochs(800)["prose"] > 1


def test_when_all_are_capped_training_goes_on():
    made = mix("capped", epochs=1.0)
    assert made.look(view(epochs={"a": 1.0})) == pytest.approx({"a": 0, "b": 3000 / 3500, "empty": 0, "c": 500 / 3500})
    assert made.look(view(epochs={"a": 1.0, "b": 1.2, "c": 1.0})) == pytest.approx({"a": 1000 / 4500, "b": 3000 / 4500, "empty": 0, "c": 500 / 4500})


def test_a_curriculum_changes_where_it_says():
    made = mix("curriculum", spans=[{"until": 0.3, "mix": "proportional"}, {"mix": {"name": "fixed", "weights": {"c": 1.0}}}])
    assert made.look(view(299)) is None
    assert made.look(view(300)) == {"a": 0.0, "b": 0.0, "empty": 0.0, "c": 1.0}
    assert made.look(view(301)) is None


def test_loss_driven_gives_more_to_what_is_predicted_worse_and_measures_seldom():
    made = mix("loss_driven", every=10, explore=0.1)
    assert made.look(view(9)) is None
    shares = made.look(view(10, losses={"a": 1.0, "b": 2.0, "c": 4.0}))
    assert shares["c"] > shares["b"] > shares["a"] > 0.1 / 3
    assert shares["empty"] == 0
    assert sum(shares.values()) == pytest.approx(1)


def test_aioli_finds_the_law_it_is_given():
    """Losses that fall by exactly the law: after one round the estimate is the law up to scale, and the odds follow it."""
    names = ["a", "b", "c"]
    law = np.array([[3.0, 0.5, -0.2], [0.1, 1.0, 0.0], [0.2, 0.3, 0.4]]) * 1e-3
    made = mix("aioli", every=60, learn=0.5, sweeps=2, rate=0.7)
    loss, shares, asked = np.array([5.0, 4.0, 3.0]), made.shares, []

    def measure():
        asked.append(1)
        return dict(zip(names, loss.tolist(), strict=True))

    for step in range(60):
        shares = made.look(view(step, losses=measure)) or shares
        assert sum(shares.values()) == pytest.approx(1)
        loss = loss - law @ [shares[name] for name in names]
    assert len(asked) == 2 * 3 + 1
    wanted = law / np.abs(law).sum() * 3
    np.testing.assert_allclose(made.law, wanted, rtol=1e-6, atol=1e-9)
    assert made.law_by_name()["a"]["b"] == pytest.approx(wanted[0, 1])
    odds = np.exp(0.7 * wanted.sum(0))
    assert [shares[name] for name in names] == pytest.approx((odds / odds.sum()).tolist())


@pytest.mark.parametrize(("steps", "every"), [(1000, 125), (40, 16)])
def test_aiolis_rounds_follow_from_the_run_unless_the_probes_need_more(steps, every):
    made = mix("aioli")
    made.look(view(0, steps, losses=dict.fromkeys("abc", 1.0)))
    assert made.every == every
    again = mix("aioli")
    again.restore(json.loads(json.dumps(made.state())))
    assert again.every == every


def test_fixed_shares_are_equal_where_no_weights_are_given():
    assert choose("data/mix", "fixed")(SIZES) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "empty": 0, "c": 1 / 3})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "aioli", "every": 10}, "don't fit"),
        ({"name": "aioli", "favour": 1.0}, "below 1"),
        ({"name": "loss_driven", "every": 0}, "at least 1"),
        ({"name": "loss_driven", "explore": 1.5}, "below 1"),
        ({"name": "capped", "caps": {"z": 2.0}}, "no source or domain 'z'"),
        ({"name": "capped", "epochs": 0.0}, "above 0"),
        ({"name": "curriculum", "spans": []}, "rising"),
        ({"name": "curriculum", "spans": [{"until": 0.5, "mix": "aioli"}]}, "by itself"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(RecipeError, match=says):
        choose("data/mix", options)(SIZES)
