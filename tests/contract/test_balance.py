"""Every way to make one gradient of several: one tensor for each parameter that has a gradient, and a state that survives JSON at any step."""

import json

import pytest
import torch

from bessemer.core import registry
from bessemer.train.balance._gradient import Gradient

NAMES = registry.names("train/balance")
PARAMETERS = ["blocks.0.weight", "blocks.1.weight", "tasks.a.head.weight", "nobody.weight"]


def made(name):
    return registry.choose("train/balance", name)()


def tasks(step):
    """Two tasks that share two parameters; one has a head of its own, and the last parameter is nobody's."""
    draw = torch.Generator().manual_seed(step)
    a, b, c, d, head = (torch.randn(6, generator=draw) for _ in range(5))
    return [Gradient("a", 2.0 / (step + 1), [a, b, head, None], PARAMETERS), Gradient("b", 0.5, [c, d, None, None], PARAMETERS)]


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_finite_gradient_for_each_parameter_that_any_task_moves(name):
    balance = made(name)
    for step in range(4):
        found = balance(tasks(step))
        assert [part is None for part in found] == [False, False, False, True]
        assert all(part.shape == (6,) and part.isfinite().all() for part in found[:3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_goes_on_from_its_state_as_json_holds_it(name, cut):
    whole, again = made(name), made(name)
    for step in range(cut):
        whole(tasks(step))
    again.restore(json.loads(json.dumps(whole.state())))
    for step in range(cut, cut + 4):
        for a, b in zip(whole(tasks(step)), again(tasks(step)), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    assert json.dumps(whole.state()) == json.dumps(again.state())
