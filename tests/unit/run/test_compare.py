"""Comparisons: the same budget, shared data, resumable, and honest about chance."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bessemer.cli import main
from bessemer.core.errors import BessemerError
from bessemer.run import compare

RECIPE = '[[stage]]\ndo = "run_toys.write"\n[[stage]]\ndo = "run_toys.train"\n[[stage]]\ndo = "run_toys.fault"\n'


@pytest.fixture
def toy(here):
    (here / "r.toml").write_text(RECIPE)
    return here


def test_variants_are_ranked_and_share_their_data(toy, capsys):
    assert main(["compare", "r.toml", "--vary", "lr=0.5,1.0,2.0", "--budget", "steps=40", "--json", "--quiet"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["settings"]["lr"] for row in table["variants"]] == [2.0, 1.0, 0.5]
    assert all(row["steps"] == 40 for row in table["variants"])
    best = table["variants"][0]
    assert best["final"] == pytest.approx(best["loss"] * (1 / 2 + 1 / 3) / 2, rel=0.05)
    assert "chance unknown" in table["variants"][1]["verdict"]
    assert len(list(Path("runs/r-compare/store").glob("write-*"))) == 1
    assert len(list(Path("runs/r-compare/store").glob("train-*"))) == 3
    place = Path("runs/r-compare")
    assert json.loads((place / "compare.json").read_text())["variants"] == table["variants"]
    with open(place / "compare.csv") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["lr=2.0", "lr=1.0", "lr=0.5"]
    for name in ("loss_tokens.png", "loss_seconds.png", "held_out_tokens.png", "held_out_seconds.png", "compare.html"):
        assert (place / name).stat().st_size > 1000


def test_it_resumes_and_takes_up_new_values(toy, capsys):
    assert main(["compare", "r.toml", "--vary", "lr=0.5,1.0", "--quiet"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs/r-compare/store").iterdir()}
    assert main(["compare", "r.toml", "--vary", "lr=0.5,1.0,2.0", "--quiet"]) == 0
    after = {path: path.stat().st_mtime_ns for path in Path("runs/r-compare/store").iterdir()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1


def test_seeds_tell_difference_from_noise(toy):
    large = compare.compare("r.toml", {"lr": [0.2, 2.0]}, Path("a"), budget="steps=20", seeds=3)
    assert "within noise" not in large["variants"][1]["verdict"]
    assert large["variants"][0]["spread"] > 0
    small = compare.compare("r.toml", {"lr": [1.0, 1.001]}, Path("b"), budget="steps=20", seeds=3)
    assert "within noise" in small["variants"][1]["verdict"]
    seeds = {json.loads(path.read_text())["recipe"]["do"] for path in Path("b/store").glob("train-*/manifest.json")}
    assert seeds == {"run_toys.train"}
    assert len(list(Path("b/store").glob("write-*"))) == 1, "data stages keep the recipe's seed"


def test_variants_of_one_seed_share_their_noise(toy):
    """The order of data and the weights' beginning are functions of the seed alone, so differences are paired."""
    table = compare.compare("r.toml", {"words": [1, 2]}, Path("a"), seeds=2)
    assert table["variants"][0]["final_by_seed"] == table["variants"][1]["final_by_seed"]


@pytest.mark.parametrize(("text", "value"), [("tokens=2M", ("tokens", 2_000_000)), ("seconds=1.5", ("seconds", 1.5)), ("steps=3k", ("steps", 3000))])
def test_budgets(text, value):
    assert compare.parse_budget(text) == value


@pytest.mark.parametrize("text", ["", "tokens", "tokens=", "tokens=x", "tokens=0", "tokens=inf", "tokens=nan", "weeks=2", "steps=-1"])
def test_what_is_no_budget(text):
    with pytest.raises(BessemerError):
        compare.parse_budget(text)


def test_values_with_commas_inside():
    assert compare.parse_vary(["a=[1, 2],[3]", "b={ c = 1, d = 2 },x", 'e="p,q",r']) == {
        "a": [[1, 2], [3]],
        "b": [{"c": 1, "d": 2}, "x"],
        "e": ["p,q", "r"],
    }
