"""Ways of making one gradient of several tasks'."""

import json
import math

import pytest
import torch

from bessemer.core.registry import choose
from bessemer.train.balance._gradient import Gradient, shared
from bessemer.train.balance.agvm import module_of

NAMES = ["blocks.0.weight", "tasks.a.head.weight"]


def gradient(task, loss, *parts):
    return Gradient(task, loss, [None if part is None else torch.tensor(part) for part in parts], NAMES)


def made(name, **options):
    return choose("train/balance", {"name": name, **options})()


def test_projection_removes_only_what_conflicts():
    a, b = gradient("a", 1.0, [1.0, 1.0], [2.0]), gradient("b", 1.0, [-1.0, 0.5], None)
    (trunk, head) = made("projection")([a, b])
    dot, aa, bb = -0.5, 2.0 + 4.0, 1.25
    expected_a = torch.tensor([1.0, 1.0]) - dot / bb * torch.tensor([-1.0, 0.5])
    expected_b = torch.tensor([-1.0, 0.5]) - dot / aa * torch.tensor([1.0, 1.0])
    torch.testing.assert_close(trunk, expected_a + expected_b)
    torch.testing.assert_close(head, torch.tensor([2.0]))
    agreeing = gradient("b", 1.0, [1.0, 0.5], None)
    torch.testing.assert_close(made("projection")([a, agreeing])[0], torch.tensor([2.0, 1.5]))


def test_uncertainty_settles_where_every_task_weighs_as_if_its_loss_were_one():
    balance = made("uncertainty", lr=0.2)
    for _ in range(400):
        balance([gradient("a", 4.0, [1.0], None), gradient("b", 0.25, [1.0], None)])
    assert balance.state()["logs"]["a"] == pytest.approx(math.log(4.0), abs=0.05)
    (trunk, _) = balance([gradient("a", 4.0, [1.0], None), gradient("b", 0.25, [1.0], None)])
    assert float(trunk) == pytest.approx(0.25 + 4.0, rel=0.02)


def test_gradient_norms_become_alike_on_what_is_shared():
    balance = made("gradient_norm", restoring=0.0, memory=0.0)
    tasks = [gradient("a", 1.0, [8.0, 0.0], [100.0]), gradient("b", 1.0, [0.0, 2.0], None)]
    assert shared(tasks) == {NAMES[0]}
    trunk, _ = balance(tasks)
    assert float(trunk[0]) == pytest.approx(float(trunk[1]))
    assert sum(balance.state()["factors"].values()) == pytest.approx(2.0)


def test_agvm_gives_noisier_modules_less():
    balance, draw = made("agvm", memory=0.9), torch.Generator().manual_seed(0)
    steady, noisy = torch.ones(512), torch.ones(512)
    for _ in range(60):
        parts = [steady + 0.1 * torch.randn(512, generator=draw), noisy + 2.0 * torch.randn(512, generator=draw)]
        total = balance([Gradient("a", 1.0, parts, NAMES)])
    factor = float((total[1] / parts[1]).mean())
    assert torch.equal(total[0], parts[0])
    state = balance.state()
    assert factor == pytest.approx(max(0.2, (state["variance"]["blocks"] / state["variance"]["tasks.a"]) ** 0.5), rel=1e-5)
    assert state["variance"]["tasks.a"] == pytest.approx(4.0 / 5.0, rel=0.35)
    assert state["variance"]["blocks"] == pytest.approx(0.01 / 1.01, rel=0.35)
    assert module_of("adapters.patches.project.weight") == "adapters.patches"


@pytest.mark.parametrize("name", ["uncertainty", "gradient_norm", "agvm", "projection"])
def test_state_goes_through_json_and_on(name):
    draw = torch.Generator().manual_seed(1)
    steps = [[Gradient(t, 1.0 + n, [torch.randn(8, generator=draw), torch.randn(8, generator=draw)], NAMES) for t in "ab"] for n in range(4)]
    whole, torn = made(name), made(name)
    for step in steps[:3]:
        whole(step)
        torn(step)
    again = made(name)
    again.restore(json.loads(json.dumps(torn.state())))
    for a, b in zip(whole(steps[3]), again(steps[3]), strict=True):
        assert torch.equal(a, b)
