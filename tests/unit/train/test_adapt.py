"""Reparameterized layers through a recipe: from scratch, from an earlier model, stopped and continued, exported."""

import json

import pytest
from safetensors.torch import load_file

import bessemer
from bessemer import cli
from bessemer.models.reparameterized import Reparameterized, matrices
from tests.corpus import corpus, recipe

ADAMW = '[{ name = "adamw", lr = 0.003 }]'
BETWEEN = {
    "relora": '{ name = "relora", rank = 4, every = 3 }',
    "switch_lora": '{ name = "switch_lora", rank = 4, interval = 2.0, hold = 2 }',
    "sparse_spectral": '{ name = "sparse_spectral", rank = 4, every = 3, draws = 2 }',
    "refactorize": '{ name = "refactorize", rank = 4, every = 3 }',
}
"""Methods that act between steps, often."""


class Stop:
    """A hook that asks the run to stop after a step."""

    def __init__(self, run, *, at: int) -> None:
        self.run, self.at = run, at

    def due(self, report):
        return report.progress.step == self.at

    def __call__(self, report):
        self.run.work.stop_asked = lambda: True

    def close(self):
        return


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    corpus(folder / "corpus")
    (folder / "base.toml").write_text(recipe(folder / "corpus", steps=30, optim=ADAMW, hooks="[]"))
    assert cli.main(["run", str(folder / "base.toml"), "--out", str(folder / "base"), "--quiet"]) == 0
    return folder


def run(made, name, again=False, **train):
    """Trains on the tokens that stand already; returns the status and the stage's folder."""
    start = train.pop("start", None)
    text = recipe(made / "corpus", **({"optim": ADAMW, "hooks": "[]"} | train))
    stage = "[[stage]]" + text.split("[[stage]]")[-1]
    inputs = {"tokens": made / "base/tokenize", "tokenizer": made / "base/train_tokenizer"} | ({"start": start} if start else {})
    stage += "inputs = { " + ", ".join(f'{key} = "{value}"' for key, value in inputs.items()) + " }\n"
    (made / f"{name}.toml").write_text('name = "adapted"\nseed = 3\n' + stage)
    return cli.main(["run", str(made / f"{name}.toml"), "--out", str(made / name), "--quiet"]), made / name / "train"


@pytest.mark.parametrize("name", BETWEEN)
def test_stopped_and_continued_is_bitwise_uninterrupted(made, name):
    whole = run(made, f"{name}-whole", steps=12, adapt=BETWEEN[name], hooks='["save"]')
    assert whole[0] == 0
    options = {"steps": 12, "adapt": BETWEEN[name], "hooks": '["save", { name = "tests.unit.train.test_adapt.Stop", at = 5 }]'}
    status, folder = run(made, f"{name}-cut", **options)
    assert status != 0
    assert not folder.exists()
    status, folder = run(made, f"{name}-cut", **options)
    assert status == 0
    first, second = load_file(whole[1] / "model.safetensors"), load_file(folder / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)
    losses = [line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len(losses) == 12


def test_an_earlier_model_is_adapted_trained_again_and_exported(made, tmp_path, capsys):
    base = bessemer.load(made / "base")
    status, folder = run(made, "tuned", steps=4, adapt='{ name = "lora", rank = 4 }', start=made / "base/train")
    assert status == 0
    tuned = bessemer.load(folder)
    assert isinstance(tuned.blocks[0].mlp.down, Reparameterized)
    assert tuned.blocks[0].mlp.down.matrices[0].base.equal(base.blocks[0].mlp.down.weight)
    assert tuned.embed.weight.equal(base.embed.weight)
    info = json.loads((folder / "manifest.json").read_text())["info"]
    assert info["trained_parameters"] == sum(4 * (m.outputs + m.inputs) for m in matrices(tuned))
    assert info["optimizer_state_bytes"] - 8 * info["trained_parameters"] <= 4 * 2 * len(matrices(tuned))  # Adam's moments, and a step count each
    status, further = run(made, "further", steps=2, adapt='"dora"', start=folder)
    assert status == 0
    assert bessemer.load(further).adapt.name == "dora"
    assert cli.main(["export", str(further), "--out", str(tmp_path / "exported"), "--quiet"]) == 0
    assert not any("matrices" in key for key in load_file(tmp_path / "exported/model.safetensors"))


@pytest.mark.parametrize("adapt", ["lora", "ssf"])
def test_the_usual_optimizers_do_where_one_of_them_has_nothing_to_move(made, adapt):
    """Only matrices train, or only vectors, and the default list has an entry for both."""
    usual = '[{ role = "matrix", name = "muon" }, { name = "adamw" }]'
    status, folder = run(made, f"usual-{adapt}", steps=2, adapt=f'"{adapt}"', optim=usual, start=made / "base/train")
    assert status == 0
    assert bessemer.load(folder).adapt.name == adapt


def test_an_optimizer_that_could_take_something_and_does_not_is_refused(made, capsys):
    wrong = '[{ name = "adamw" }, { role = "matrix", name = "muon" }]'
    assert run(made, "shadowed", steps=2, optim=wrong)[0] == 2
    assert "takes no parameter" in capsys.readouterr().err
    wrong = '[{ role = "matrxi", name = "muon" }, { name = "adamw" }]'
    assert run(made, "misspelt", steps=2, optim=wrong)[0] == 2
    assert "takes no parameter" in capsys.readouterr().err


def test_what_would_throw_an_earlier_model_away_is_refused(made, capsys):
    assert run(made, "thrown", steps=2, adapt='"sltrain"', start=made / "base/train")[0] == 2
    said = capsys.readouterr().err
    assert "train.adapt" in said
    assert "would be lost" in said


@pytest.mark.parametrize(
    ("adapt", "word"),
    [
        ('{ name = "lora", match = "layers.*" }', "no linear layer matches"),
        ('{ name = "lora", rnak = 4 }', "rnak"),
        ('{ name = "lorra" }', "lora"),
        ('{ name = "lora", rank = 0 }', "train.adapt.rank"),
        ('{ name = "sltrain", density = 1.5 }', "density"),
        ('{ name = "relora", every = 0 }', "every"),
    ],
)
def test_bad_options_are_refused_in_words(made, capsys, adapt, word):
    status, folder = run(made, "bad", steps=2, adapt=adapt)
    assert status == 2
    assert word in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("adapt", ["relora", "switch_lora", "sparse_spectral"])
@pytest.mark.parametrize("optim", ['{ name = "galore" }', '{ name = "lion", states = "8bit" }', '{ name = "schedule_free_adamw" }'])
def test_state_that_is_no_moments_of_single_numbers_is_refused_before_the_first_step(made, capsys, adapt, optim):
    status, folder = run(made, "zeroed", steps=2, adapt=f'"{adapt}"', optim=f"[{optim}]")
    assert status == 2
    assert "begins parts of the optimizer's state anew" in capsys.readouterr().err
    assert not folder.exists()
