"""The standard guard: retry, skip, roll back."""

import json
import math

from bessemer.core.progress import Progress
from bessemer.train.guards.standard import Standard

HERE = Progress(step=100, steps=1000)


def calm(guard, steps=60):
    for n in range(steps):
        assert guard.judge(HERE, 3.0 + 0.01 * math.sin(n), 1.0 + 0.05 * math.cos(n)).action == "step"


def test_a_non_finite_step_is_retried_once_then_skipped():
    guard = Standard()
    assert guard.judge(HERE, float("nan"), 1.0).action == "retry"
    assert guard.judge(HERE, float("nan"), 1.0).action == "skip"
    assert guard.judge(HERE, 3.0, float("inf")).action == "retry"
    assert guard.judge(HERE, 3.0, 1.0).action == "step"


def test_spikes_are_skipped_and_several_in_a_row_go_back():
    guard = Standard(patience=3)
    calm(guard)
    actions = [guard.judge(HERE, 3.0, 50.0).action for _ in range(3)]
    assert actions == ["skip", "skip", "back"]
    assert guard.judge(HERE, 3.0, 1.0).action == "step"


def test_a_spike_before_the_window_is_full_is_no_spike():
    guard = Standard(window=50)
    calm(guard, 20)
    assert guard.judge(HERE, 9.0, 50.0).action == "step"


def test_a_skipped_step_does_not_count_as_the_past():
    guard = Standard()
    calm(guard)
    before = json.dumps(guard.state()["past"])
    guard.judge(HERE, 3.0, 1e6)
    assert json.dumps(guard.state()["past"]) == before


def test_state_survives_json():
    one, other = Standard(), Standard()
    calm(one)
    other.restore(json.loads(json.dumps(one.state())))
    for loss, norm in [(3.0, 1.1), (3.1, 60.0), (3.0, 0.9)]:
        assert one.judge(HERE, loss, norm) == other.judge(HERE, loss, norm)
