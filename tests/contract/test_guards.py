"""Every guard: says one of four things of a step, goes on from its state as JSON holds it, and doesn't let a loss that stays non-finite be."""

import json
import math

import pytest

from bessemer.core import registry
from bessemer.core.progress import Progress

NAMES = registry.names("train/guards")
WORDS = {"step", "retry", "skip", "back"}
STEPS = [(3.0 + 0.01 * math.sin(n), 1.0 + 0.05 * math.cos(n)) for n in range(80)]
STEPS[70:74] = [(math.nan, 1.0), (3.0, math.inf), (3.0, 1e6), (9e9, 1.0)]


def made(name):
    return registry.choose("train/guards", name)()


def judged(guard, start, stop):
    return [guard.judge(Progress(step=start + n, steps=100), *step) for n, step in enumerate(STEPS[start:stop])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 60, 71, 72, 73])
def test_goes_on_from_its_state_as_json_holds_it(name, cut):
    whole, again = made(name), made(name)
    done = judged(whole, 0, cut)
    while done and done[-1].action == "retry":  # a step that is being retried isn't over, and no checkpoint is taken inside one
        done, cut = judged(whole, cut, cut + 1), cut + 1
    again.restore(json.loads(json.dumps(whole.state())))
    expected = judged(whole, cut, len(STEPS))
    assert judged(again, cut, len(STEPS)) == expected
    assert {verdict.action for verdict in expected} <= WORDS


@pytest.mark.parametrize("name", NAMES)
def test_calm_steps_pass_and_a_loss_that_stays_non_finite_goes_back(name):
    guard = made(name)
    assert {verdict.action for verdict in judged(guard, 0, 60)} == {"step"}
    assert "back" in [guard.judge(Progress(step=60 + n, steps=100), math.nan, math.nan).action for n in range(20)]
