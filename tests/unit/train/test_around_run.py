"""Methods around the optimizers, and updates inside the backward pass, through a recipe and the loop."""

import json

import pytest
import torch

import bessemer
from tests.unit.train.test_loop import ADAMW, lines, made, run  # noqa: F401 - `made` is a fixture

FREE = '[{ name = "schedule_free_adamw", lr = 0.01 }]'
FREELY = {"clip": "inf", "guard": '"watch"'}
TWO = '[{ name = "some" }, { name = "more", domains = ["code"] }]'
TOGETHER = '[{ name = "ema", decay = 0.9 }, { name = "lisa", layers = 1, every = 3 }, { name = "noise_scale", every = 2 }]'


def test_a_run_with_several_methods_measures_its_noise_and_keeps_the_average(made):  # noqa: F811
    schedule = '{ batch = { name = "noise_ramp", start = 0.25 } }'
    hooks = '[{ name = "evaluate", times = 2 }]'
    status, folder = run(made, "around", steps=12, batch=8, micro_batch=2, around=TOGETHER, schedule=schedule, hooks=hooks)
    assert status == 0
    found = lines(folder)
    scales = [line["noise_scale"] for line in found if "noise_scale" in line]
    assert len(scales) >= 10  # of 12 steps, for the first measures
    assert scales[-1] == json.loads((folder / "manifest.json").read_text())["info"]["progress"]["noise_scale"] > 0
    assert {line["rows"] for line in found if "loss" in line} <= {2, 4, 8}
    plain = run(made, "around-plain", steps=12, batch=8, micro_batch=2, around='[{ name = "lisa", layers = 1, every = 3 }]', hooks=hooks)[1]
    ours, theirs = bessemer.load(folder), bessemer.load(plain)
    assert not torch.equal(ours.head.weight, theirs.head.weight)


def test_schedule_free_exports_its_average_and_measures_it(made):  # noqa: F811
    status, folder = run(made, "free", steps=30, batch=8, optim=FREE, schedule="{}", hooks='[{ name = "evaluate", times = 1 }]')
    assert status == 0
    from bessemer.run import models

    measured = [line["evaluation"]["bits_per_byte"] for line in lines(folder) if "evaluation" in line][-1]
    again = models.evaluate(folder, models.tasks(["bits_per_byte"]), made / "base/tokenize", 3, lambda *_: None)["bits_per_byte"]
    assert {k: float(v) for k, v in again.items()} == pytest.approx(measured, rel=1e-5)


def test_updates_inside_the_backward_pass_through_a_recipe(made):  # noqa: F811
    options = {"steps": 6, "batch": 4, "micro_batch": 4, "optim": ADAMW, "clip": "inf", "guard": '"watch"'}
    status, inside = run(made, "inside", per_layer=True, **options)
    assert status == 0
    status, whole = run(made, "whole", **options)
    assert status == 0
    for a, b in zip(bessemer.load(inside).parameters(), bessemer.load(whole).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    norms = [[line["gradient_norm"] for line in lines(folder) if "loss" in line] for folder in (inside, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "clip"),
        ({"clip": "inf"}, "guard"),
        ({**FREELY, "batch": 4, "micro_batch": 2}, "micro_batch"),
        ({**FREELY, "batch": 4, "micro_batch": 4, "task": TWO}, "task"),
        ({**FREELY, "batch": 4, "micro_batch": 4, "balance": '"projection"'}, "balance"),
    ],
)
def test_what_contradicts_an_update_inside_the_backward_pass_is_refused(made, capsys, options, named):  # noqa: F811
    status, _ = run(made, f"refused-{len(options)}", steps=2, per_layer=True, **options)
    assert status == 2
    said = capsys.readouterr().err
    assert f"train.{named}" in said
    assert "per_layer" in said


def test_a_ramp_that_follows_a_measure_nobody_takes_is_refused(made, capsys):  # noqa: F811
    status, _ = run(made, "alone", steps=2, schedule='{ batch = { name = "noise_ramp" } }')
    assert status == 2
    said = capsys.readouterr().err
    assert "train.schedule.batch" in said
    assert "noise_scale" in said
