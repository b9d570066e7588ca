"""The loop through its recipe: guards at work, hooks, budgets, roll-back."""

import json
import math
import os
from pathlib import Path

import pytest

import bessemer
from bessemer import cli
from bessemer.objectives.next_token import NextToken
from tests.corpus import corpus, recipe

ADAMW = '[{ name = "adamw", lr = 0.003 }]'


class Poisoned(NextToken):
    """next_token, but with these samples the loss is multiplied by `value`."""

    def __init__(self, *, samples: list[int], value: float = float("nan")) -> None:
        super().__init__()
        self.samples, self.value = samples, value

    def __call__(self, outputs, batch):
        terms = super().__call__(outputs, batch)
        if set(self.samples) & set(batch.samples.tolist()):
            terms.add("next_token", terms["next_token"].sum * self.value, over="next_token")
        return terms


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, and its tokens, made once."""
    folder = tmp_path_factory.mktemp("loop")
    corpus(folder / "corpus")
    text = recipe(folder / "corpus", steps=2, optim=ADAMW, hooks="[]")
    (folder / "base.toml").write_text(text)
    assert cli.main(["run", str(folder / "base.toml"), "--out", str(folder / "base"), "--quiet"]) == 0
    return folder


def run(made, name, **train):
    """Trains on the tokens that stand already, and returns the stage's folder."""
    body = recipe(made / "corpus", **({"optim": ADAMW, "hooks": "[]"} | train))
    head, _, stages = body.partition("[[stage]]")
    stage = "[[stage]]" + stages.split("[[stage]]")[-1]
    inputs = f'inputs = {{ tokens = "{made}/base/tokenize", tokenizer = "{made}/base/train_tokenizer" }}\n'
    path = made / f"{name}.toml"
    path.write_text(head + stage + inputs if "inputs" not in stage else head + stage)
    return cli.main(["run", str(path), "--out", str(made / name), "--quiet"]), made / name / "train"


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def task(samples, value="nan"):
    return f'[{{ objective = {{ name = "tests.unit.train.test_loop.Poisoned", samples = {samples}, value = {value} }} }}]'


def test_a_poisoned_sample_is_retried_skipped_and_named(made):
    status, folder = run(made, "poison", steps=12, micro_batch=2, task=task([17]))
    assert status == 0
    found = lines(folder)
    events = [line for line in found if "guard" in line]
    assert [(e["step"], e["guard"]) for e in events] == [(5, "retry"), (5, "skip")]
    assert events[1]["samples"] == [16, 17]
    assert [line["skipped"] for line in found if "loss" in line][-1] == 1


def test_several_bad_steps_go_back_to_the_checkpoint_and_past_the_data(made):
    hooks = '[{ name = "save", every = 5 }]'
    status, folder = run(made, "back", steps=20, task=task([28, 32, 36]), hooks=hooks)
    assert status == 0
    found = lines(folder)
    assert [line["guard"] for line in found if "guard" in line] == ["retry", "skip", "retry", "skip", "retry", "back"]
    steps = [line["step"] for line in found if "loss" in line]
    assert steps == list(range(1, 10)) + list(range(6, 21))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["info"]["progress"]["rollbacks"] == 1


def test_a_run_that_is_bad_throughout_says_so(made, capsys):
    status, _ = run(made, "hopeless", steps=8, task=task(list(range(64))))
    assert status == 2
    assert "before there was a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("budget", "steps"), [({"steps": 7}, 7), ({"steps": "9", "tokens": 4 * 32 * 5}, 5)])
def test_budgets_end_the_run(made, budget, steps):
    status, folder = run(made, f"budget-{steps}", **budget)
    assert status == 0
    assert lines(folder)[-1]["step"] == steps


STEP = 4 * 32
"""Tokens of a step."""


@pytest.mark.parametrize(("around", "steps"), [("[]", 7), ('["con_adv"]', 2)])
def test_a_budget_of_operations_ends_before_the_step_that_would_go_beyond(made, around, steps):
    """con_adv takes three passes a step where there is one without."""
    price = info(run(made, "price", steps=1)[1])["flops_per_token"]
    status, folder = run(made, f"flops-{steps}", steps="9", flops=7.9 * price * STEP, around=around)
    assert status == 0
    assert info(folder)["progress"]["step"] == steps
    assert info(folder)["progress"]["flops"] == pytest.approx(steps * price * STEP * (3 if steps == 2 else 1))
    assert [line["flops"] for line in lines(folder) if "loss" in line][-1] == info(folder)["progress"]["flops"]


def test_operations_that_pay_for_no_step_are_refused(made, capsys):
    assert run(made, "flops-none", steps="9", flops=1000.0)[0] == 2
    said = capsys.readouterr().err
    assert "train.flops" in said
    assert "mend:" in said


def info(folder):
    return json.loads((folder / "manifest.json").read_text())["info"]


def test_a_budget_of_seconds_ends_the_run(made):
    status, folder = run(made, "seconds", steps=100000, seconds=1.0, schedule='{ lr = "linear" }')
    assert status == 0
    last = lines(folder)[-1]
    assert last["seconds"] >= 1.0
    assert last["learning_rate"] < 0.003 * 0.2


def test_the_batch_ramp_changes_rows_and_loses_no_sample(made):
    status, folder = run(made, "ramp", steps=12, batch=8, micro_batch=2, schedule='{ batch = { name = "ramp", start = 0.25, span = 0.5 } }')
    assert status == 0
    found = lines(folder)
    assert [line["rows"] for line in found] == [2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8]
    assert found[-1]["tokens"] == 32 * sum(line["rows"] for line in found)


def test_it_learns_and_the_model_it_leaves_is_the_one_it_measured(made):
    status, folder = run(made, "learns", steps=120, batch=16, hooks='["evaluate"]')
    assert status == 0
    measured = [line["evaluation"]["bits_per_byte"] for line in lines(folder) if "evaluation" in line]
    assert len(measured) == 10
    losses = [line["loss"] for line in lines(folder) if "loss" in line]
    assert losses[-1] < losses[0] - 1.0
    assert bessemer.load(folder) is not None


def test_a_new_model_is_made_for_the_rows_it_is_trained_on(made):
    status, folder = run(made, "context", steps=2)
    assert status == 0
    model = bessemer.load(folder)
    assert model.options["length"] == 32
    wide = '{ name = "decoder", depth = 2, width = 32, heads = 2, ffn = 64, length = 48 }'
    assert run(made, "wider", steps=2, model=wide)[0] == 0
    assert bessemer.load(made / "wider").options["length"] == 48


@pytest.mark.parametrize("length", [64, 0])
def test_rows_longer_than_the_models_context_are_refused(made, capsys, length):
    short = '{ name = "decoder", depth = 2, width = 32, heads = 2, ffn = 64, length = 48 }'
    assert run(made, f"long-{length}", steps=2, model=short, length=length)[0] == 2
    said = capsys.readouterr().err
    assert "train.length" in said
    assert ("rows of 64 tokens are longer than the 48" if length else "must be above 0") in said


@pytest.mark.parametrize("option", ["seconds = nan", "flops = nan", "clip = nan", "clip = -1.0", "clip = 0.0", "keep = 0"])
def test_numbers_that_are_not_above_zero_are_refused(made, capsys, option):
    key, _, value = option.partition(" = ")
    assert run(made, option.replace(" ", ""), **({"steps": 2} | {key: value}))[0] == 2
    assert f"train.{key}: must be above 0, and is {value}" in capsys.readouterr().err


def test_infinite_limits_are_none(made):
    assert run(made, "endless", steps=1, clip="inf", flops="inf")[0] == 0


def test_every_line_of_the_metrics_says_what_its_time_went_to(made):
    status, folder = run(made, "spent", steps=4, hooks='[{ name = "evaluate", times = 2 }, { name = "save", every = 2 }]')
    assert status == 0
    parts = [set(line["time"]) for line in lines(folder)]
    assert parts.count({"evaluation"}) == parts.count({"saving"}) == 2
    assert parts.count({"data", "forward_backward", "update", "saving", "other"}) == 4


def test_weights_and_biases_offline_holds_the_figures(made, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    status, folder = run(made, "wandb", steps=3, hooks='[{ name = "wandb", mode = "offline" }]')
    assert status == 0
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow_holds_the_figures(made):
    from mlflow import MlflowClient

    uri = f"file:{made}/mlruns"
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    status, folder = run(made, "mlflow", steps=3, hooks=f'[{{ name = "mlflow", uri = "{uri}" }}]')
    assert status == 0
    client = MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name("bessemer").experiment_id
    found = client.get_metric_history(client.search_runs([place])[0].info.run_id, "loss")
    assert [m.value for m in found] == pytest.approx([line["loss"] for line in lines(folder) if "loss" in line])


def test_nothing_non_finite_reaches_the_files(made):
    text = Path(made / "poison/train/metrics.jsonl").read_text()
    assert "NaN" not in text
    assert math.isfinite(lines(made / "poison/train")[0]["loss"])


def test_tokens_of_another_tokenizer_are_refused(made, capsys):
    other = recipe(made / "corpus", steps=2, optim=ADAMW, hooks="[]").replace("vocabulary = 400", "vocabulary = 300")
    (made / "other.toml").write_text(other)
    assert cli.main(["run", str(made / "other.toml"), "--out", str(made / "other"), "--quiet"]) == 0
    text = f"""
name = "crossed"
[[stage]]
do = "train"
steps = 2
inputs = {{ tokens = "{made}/base/tokenize", tokenizer = "{made}/other/train_tokenizer" }}
"""
    (made / "crossed.toml").write_text(text)
    assert cli.main(["run", str(made / "crossed.toml"), "--out", str(made / "crossed"), "--quiet"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not (made / "crossed/train").exists()
