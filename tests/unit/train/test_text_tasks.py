"""Text tasks through a recipe: every objective trains, and what an online mix decided survives a stop."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bessemer import cli
from bessemer.run import toml
from bessemer.train.loop import Report
from tests.corpus import corpus

ADAMW = [{"name": "adamw", "lr": 0.003}]
MODEL = {"name": "decoder", "depth": 2, "width": 32, "heads": 2, "ffn": 64}


class StopAt:
    """A hook that asks the run to stop after a step, once."""

    def __init__(self, run, *, step: int, mark: str) -> None:
        self.run, self.step, self.mark = run, step, mark

    def due(self, report: Report) -> bool:
        return report.progress.step == self.step

    def __call__(self, report: Report) -> None:
        if not Path(self.mark).exists():
            Path(self.mark).write_text("stopped")
            self.run.work.stop_asked = lambda: True

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, and its tokens with every special token, made once."""
    folder = tmp_path_factory.mktemp("text")
    corpus(folder / "corpus", 60)
    stages = [
        {"do": "train_tokenizer", "inputs": {"corpus": str(folder / "corpus")}, "vocabulary": 480, "reserve": ["mask", "modes", "blanks", "units"]},
        {"do": "tokenize", "inputs": {"corpus": str(folder / "corpus")}, "held_out": 0.2, "processes": 1},
    ]
    assert go(folder, "base", stages) == 0
    return folder


def go(folder, name, stages):
    path = folder / f"{name}.toml"
    path.write_text(toml.recipe({"name": name, "seed": 3, "stage": stages}))
    return cli.main(["run", str(path), "--out", str(folder / name), "--quiet"])


def train(folder, **options):
    inputs = {"tokens": str(folder / "base/tokenize"), "tokenizer": str(folder / "base/train_tokenizer")}
    given = {
        "model": MODEL,
        "optim": ADAMW,
        "steps": 12,
        "batch": 4,
        "micro_batch": 2,
        "length": 32,
        "compile": False,
        "precision": "float32",
        "hooks": [],
    }
    return {"do": "train", "inputs": inputs} | given | options


def lines(folder):
    return [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["meap", "ul2", "masked_language", "masked_diffusion", "electra", "position_prediction", "interleaved"])
def test_every_objective_learns_through_a_recipe(made, name):
    status = go(made, name, [train(made, steps=40, task=[{"objective": name}])])
    assert status == 0
    losses = [line["loss"] for line in lines(made / name) if "loss" in line]
    assert len(losses) == 40
    assert sum(losses[-8:]) < sum(losses[:8])


MIXES = {
    "aioli": {"name": "aioli", "every": 8, "learn": 0.5},
    "loss_driven": {"name": "loss_driven", "every": 3},
    "capped": {"name": "capped", "epochs": 0.2},
}


@pytest.mark.parametrize("mix", MIXES)
def test_a_stopped_run_goes_on_as_it_would_have(made, mix, tmp_path):
    task = [{"mix": MIXES[mix], "condition": {"name": "metadata", "facts": ["domain"], "cooldown": 0.3}, "objective": "ul2"}]
    stages = [train(made, steps=16, task=task)]
    assert go(made, f"{mix}-whole", stages) == 0
    hook = {"name": "tests.unit.train.test_text_tasks.StopAt", "step": 7, "mark": str(tmp_path / "mark")}
    stopping = [train(made, steps=16, task=task, hooks=[hook])]
    assert go(made, f"{mix}-stopped", stopping) != 0
    assert go(made, f"{mix}-stopped", stopping) == 0
    assert (tmp_path / "mark").exists()
    whole, stopped = (lines(made / f"{mix}-{how}") for how in ("whole", "stopped"))
    changes = [line["mix"] for line in whole if "mix" in line]
    assert len(changes) >= 2
    assert changes == [line["mix"] for line in stopped if "mix" in line]
    assert [line["loss"] for line in whole if "loss" in line] == [line["loss"] for line in stopped if "loss" in line]
    one, other = (load_file(made / f"{mix}-{how}/train/model.safetensors") for how in ("whole", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_teachers_stored_logits_teach(made):
    teacher = train(made, steps=30, model=MODEL | {"width": 64, "ffn": 128}) | {"name": "teacher"}
    store = {"do": "store_logits", "inputs": {"tokens": str(made / "base/tokenize"), "model": "teacher"}, "keep": 4, "length": 32}
    student = train(made, steps=20, task=[{"objective": {"name": "sparse_distill", "hard": 0.5}}])
    student["inputs"] |= {"logits": "store_logits"}
    assert go(made, "distilled", [teacher, store, student | {"name": "student", "model": MODEL}]) == 0
    found = [json.loads(line) for line in (made / "distilled/student/metrics.jsonl").read_text().splitlines()]
    distances = [line["terms"]["distill"] for line in found if "terms" in line]
    assert distances[-1] < distances[0]


def test_a_tokenizer_without_a_mask_is_told_how_to_get_one(tmp_path, capsys):
    corpus(tmp_path / "corpus", 30)
    stages = [
        {"do": "train_tokenizer", "inputs": {"corpus": str(tmp_path / "corpus")}, "vocabulary": 300},
        {"do": "tokenize", "inputs": {"corpus": str(tmp_path / "corpus")}, "processes": 1},
        train(tmp_path, task=[{"objective": "meap"}]) | {"inputs": {}},
    ]
    assert go(tmp_path, "bare", stages) == 2
    said = capsys.readouterr().err
    assert "no special token '<|mask|>'" in said
    assert 'reserve = ["mask"]' in said
    assert "Traceback" not in said
