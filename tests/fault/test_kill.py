"""Killed by SIGKILL at 20 random moments and run again by the same command: bitwise what would have been."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from bessemer.core import rng
from tests.corpus import corpus, recipe

STEPS, KILLS = 60, 20
OPTIM = '[{ role = "matrix", name = "muon", lr = 0.02 }, { name = "adamw", lr = 0.003 }]'


class Zygote:
    def __init__(self):
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.zygote"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, argv, log):
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["pid"]

    def status(self):
        return json.loads(self.process.stdout.readline())["status"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def zygote():
    made = Zygote()
    yield made
    made.close()


def write_recipe(folder, name):
    hooks = (
        f'[{{ name = "save", every = 3 }}, {{ name = "evaluate", times = 3 }}, {{ name = "tests.fault.seen.Seen", file = "{folder / name}.seen" }}]'
    )
    text = recipe(folder / "corpus", steps=STEPS, optim=OPTIM, hooks=hooks, micro_batch=2)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return ["run", str(path), "--out", str(folder / name), "--quiet"]


def weights(folder):
    return load_file(folder / "train" / "model.safetensors")


def seen(file):
    """Samples by step: the last time a step was taken is the one that counted."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["step"]: line["samples"] for line in lines}


def saving(folder):
    return next(folder.glob(".train.*.partial/checkpoints/.*.part"), None) is not None


def test_twenty_kills_change_nothing(tmp_path, zygote):
    corpus(tmp_path / "corpus")
    log = tmp_path / "log"
    whole = write_recipe(tmp_path, "whole")
    began = time.monotonic()
    zygote.start(whole, log)
    assert zygote.status() == 0, log.read_text()
    took = time.monotonic() - began

    draw = rng.numpy_generator(7, "kill")
    killed = torn = 0
    for number in range(KILLS):
        name = f"broken-{number}"
        argv, status = write_recipe(tmp_path, name), -signal.SIGKILL
        while status == -signal.SIGKILL and killed < KILLS:
            status, during = run_and_kill(zygote, argv, log, tmp_path / name, float(draw.uniform(0.05, 0.7)) * took, wait_for_save=killed % 2 == 1)
            killed, torn = killed + (status != 0), torn + during
        if status:
            zygote.start(argv, log)
            assert zygote.status() == 0, log.read_text()
        compare(tmp_path, name)
        if killed == KILLS:
            break
    assert killed == KILLS
    assert torn >= 3, "too few kills fell into a save"


def run_and_kill(zygote, argv, log, folder, moment, wait_for_save):
    """Runs the command and kills it after `moment` seconds, or, from half of that on, as soon as a save is under way."""
    pid, begun = zygote.start(argv, log), time.monotonic()
    while time.monotonic() - begun < moment and not (wait_for_save and time.monotonic() - begun > moment / 2 and saving(folder)):
        time.sleep(0.0005)
    during = saving(folder)
    with contextlib.suppress(ProcessLookupError):  # it was through already
        os.kill(pid, signal.SIGKILL)
    status = zygote.status()
    assert status in (0, -signal.SIGKILL), log.read_text()
    return status, during and status != 0


def compare(folder, name):
    expected, found = weights(folder / "whole"), weights(folder / name)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.tobytes() == found[key].tobytes(), key
    samples = seen(folder / f"{name}.seen")
    assert samples == seen(folder / "whole.seen")
    assert sorted(i for step in samples.values() for i in step) == list(range(4 * STEPS))


def test_metrics_read_as_if_nothing_had_happened(tmp_path, zygote):
    corpus(tmp_path / "corpus")
    argv = write_recipe(tmp_path, "run")
    pid = zygote.start(argv, tmp_path / "log")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob(".train.*.partial/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    zygote.status()
    zygote.start(argv, tmp_path / "log")
    assert zygote.status() == 0
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert len([line for line in lines if "evaluation" in line]) == 3
