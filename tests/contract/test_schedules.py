"""Every schedule is a pure function of progress, finite and between 0 and 1."""

import math

import pytest

from bessemer.core import registry
from bessemer.core.progress import Progress

NAMES = registry.names("schedules")


def curve(name, steps=200, **options):
    choice = registry.choose("schedules", {"name": name, **options})
    return [choice(Progress(step=step, steps=steps, tokens=step * 10)) for step in range(steps)]


@pytest.mark.parametrize("name", NAMES)
def test_is_pure_and_bounded(name):
    first, second = curve(name), curve(name)
    assert first == second
    assert all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in first)
    assert max(first) > 0.9


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_budgets_by_tokens_and_by_steps_give_the_same_curve(name):
    choice = registry.choose("schedules", name)
    by_steps = [choice(Progress(step=s, steps=100)) for s in range(100)]
    by_tokens = [choice(Progress(step=s, tokens=64 * s, horizon=6400)) for s in range(100)]
    assert by_tokens[1:] == pytest.approx(by_steps[1:])


def test_warmup_in_steps_ends_where_it_says():
    values = curve("wsd", warmup=10.0, decay=0.25)
    assert values[0] == pytest.approx(0.1)
    assert values[8] == pytest.approx(0.9)
    assert values[9:150] == [1.0] * 141
    assert values[199] == pytest.approx(1 / 50)


def test_cosine_ends_at_its_floor():
    assert curve("cosine", warmup=0.0, floor=0.1)[-1] == pytest.approx(0.1, abs=1e-3)


def test_infinite_does_not_depend_on_the_horizon():
    assert curve("infinite", steps=300)[:200] == curve("infinite", steps=200)


def test_ramp_climbs_by_stairs():
    values = curve("ramp", start=0.25, span=0.3, stairs=3)
    assert sorted(set(values)) == [0.25, 0.5, 0.75, 1.0]
    assert values == sorted(values)
