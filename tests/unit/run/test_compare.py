"""Comparisons: the same budget, shared data, resumable, and honest about chance."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bessemer.cli import main
from bessemer.core.errors import BessemerError
from bessemer.core.work import Stopped
from bessemer.run import compare, compare_options, compare_page, compare_table, compare_tune
from bessemer.run.report_data import Curve

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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tokens=2M", ("tokens", 2_000_000, None)),
        ("tokens=500K", ("tokens", 500_000, None)),
        ("seconds=1.5", ("seconds", 1.5, None)),
        ("steps=3k", ("steps", 3000, None)),
        ("flops=2.5P", ("flops", 2.5e15, None)),
        ("memory=2G", (None, 0, 2e9)),
        ("memory=500M,tokens=1M", ("tokens", 1_000_000, 5e8)),
    ],
)
def test_budgets(text, value):
    found = compare_options.parse_budget(text)
    assert (found.unit, found.amount, found.memory) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "tokens", "tokens=", "tokens=x", "tokens=0", "tokens=inf", "tokens=nan", "weeks=2", "steps=-1", "tokens=1,steps=1", "memory=1,memory=2",
        "tokens=0.5", "steps=0.9", "seconds=1e-9", "flops=0.1", "seconds=inf", "flops=nan", "memory=0.5",
    ],
)  # fmt: skip
def test_what_is_no_budget(text):
    with pytest.raises(BessemerError):
        compare_options.parse_budget(text)


def test_a_budget_is_shared_out():
    budget = compare_options.parse_budget("tokens=1000")
    assert budget.overrides("train", {"tokens", "steps", "flops"}, 0.25) == {"train.tokens": 250, "train.steps": None, "train.flops": None}
    assert compare_options.parse_budget(None).overrides("train", {"tokens"}, 1.0) == {}
    with pytest.raises(BessemerError, match="less than one step") as caught:
        compare_options.parse_budget("steps=4").overrides("train", {"steps"}, 0.1)
    assert (caught.value.key, caught.value.mend) == ("--budget", "give at least steps=10")


@pytest.mark.parametrize("target", ["nan", "inf", "-inf"])
def test_what_is_no_target(toy, capsys, target):
    assert main(["compare", "r.toml", "--vary", "lr=0.5,1.0", "--budget", "steps=20", f"--target={target}", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "--target" in said
    assert "mend:" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("vary", "more", "said"),
    [
        ('around=[],["qk_clip"]', [], "train.around.qk_clip"),
        ('optim=["adamw"],["muon"]', [], 'role = "matrix"'),
        ('optim=["adamw"],["lion"]', ["--budget", "tokens=1000"], "give at least tokens=2048"),
        ('optim=["adamw"],["lion"]', ["--budget", "tokens=3k", "--tune", "optim.lr=2"], "trial of tuning"),
        ('optim=["adamw"],["lion"]', ["--budget", "flops=1"], "--budget: a step takes"),
        ('optim=["adamw"],["lion"]', ["--vary", 'train.optim=["adamw"],["sgd"]'], "'optim' and 'train.optim' are the same key"),
        ("sample.max_tokens=8,16", [], "sample.max_tokens=8 and sample.max_tokens=16 are the same training"),
    ],
)
def test_mistakes_of_a_later_variant_come_out_before_anything_is_trained(here, capsys, vary, more, said):
    assert main(["compare", "tiny", "train.batch=4", "--vary", vary, *more, "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_smoke_test_says_that_it_spends_no_budget(toy, capsys):
    assert main(["compare", "r.toml", "--vary", "lr=0.5,1.0", "--budget", "steps=20", "--smoke"]) == 0
    assert "whatever its budget" in capsys.readouterr().err


def test_a_variant_that_fails_leaves_the_others_their_table(toy, capsys):
    command = ["compare", "r.toml", "--vary", "fails=[],[0]", "--budget", "steps=20", "--json", "--quiet"]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert [row["failed"] for row in rows] == [[], ["can't train at seed 0"]]
    assert "1 of 1 failed: can't train at seed 0" in rows[1]["verdict"]
    assert main(["compare", "r.toml", "--vary", "words=1,-1", "--budget", "steps=20", "--out", "a", "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert [row["failed"] for row in rows] == [[], ["-1 words can't be written"]]


def test_a_mistake_that_all_variants_share_ends_the_comparison(toy, capsys, monkeypatch):
    assert main(["compare", "r.toml", "fails=[0]", "--vary", "lr=0.5,1.0", "--budget", "steps=20", "--quiet"]) == 2
    assert "train.fails: can't train at seed 0" in capsys.readouterr().err
    made = []
    monkeypatch.setattr(compare.runner, "run", lambda *given, run=compare.runner.run, **more: (made.append(1), run(*given, **more))[1])
    assert main(["compare", "r.toml", "words=-1", "--vary", "lr=0.5,1.0", "--budget", "steps=20", "--out", "a", "--quiet"]) == 2
    assert "-1 words can't be written" in capsys.readouterr().err
    assert len(made) == 1, "the data of the second variant would fail likewise"
    assert not Path("a/compare.json").exists()


def test_who_stops_one_training_stops_the_comparison(toy, monkeypatch):
    def stopped(*given, **more):
        raise Stopped

    monkeypatch.setattr(compare.runner, "run", stopped)
    with pytest.raises(Stopped):
        compare.compare("r.toml", {"lr": [0.5, 1.0]}, Path("a"), budget="steps=20")


def test_seeds_that_failed_never_reach_the_target_and_rank_below(toy):
    """Of three seeds the faster variant loses two; what the third came to is best, and says little."""
    table = compare.compare("r.toml", {"lr": [0.5, 2.0], "fails": [[], [1, 2]]}, Path("a"), budget="steps=40", seeds=3)
    by = {(row["settings"]["lr"], len(row["failed"])): row for row in table["variants"]}
    assert [(row["settings"]["lr"], len(row["failed"])) for row in table["variants"]] == [(2.0, 0), (0.5, 0), (2.0, 2), (0.5, 2)]
    assert by[2.0, 2]["final"] < by[0.5, 0]["final"]
    assert by[2.0, 2]["reached"] == 1
    assert by[2.0, 2]["steps_to_target"] is None
    assert by[2.0, 0]["steps_to_target"] is not None
    assert "2 of 3 failed" in by[2.0, 2]["verdict"]


@pytest.mark.parametrize("text", ["", "lr", "lr=", "lr=1", "lr=0.5", "lr=true"])
def test_what_is_nothing_to_tune(text):
    with pytest.raises(BessemerError):
        compare_options.parse_tune([text])


def test_a_grid_is_even_in_the_logarithm_and_keeps_the_variants_own_value():
    found = [setting["lr"] for setting in compare_tune.grid({"lr": 3}, {"lr": 0.02})]
    assert found == pytest.approx([0.02 / 10**0.5, 0.02, 0.02 * 10**0.5], rel=1e-3)
    both = list(compare_tune.grid({"lr": 2, "mood": ["a", "b"]}, {"lr": 1.0}))
    assert len(both) == compare_tune.trials({"lr": 2, "mood": ["a", "b"]}) == 4
    with pytest.raises(BessemerError, match="above 0"):
        list(compare_tune.grid({"lr": 2}, {"lr": 0.0}))


def test_tuning_finds_each_variants_rate_inside_the_same_total(toy, capsys):
    """The toy's loss falls faster with a larger rate, so the largest tried is the best, and the table says that it is at the edge."""
    command = ["compare", "r.toml", "--vary", "words=1,2", "--tune", "lr=3", "--budget", "steps=70", "--seeds", "2", "--json", "--quiet"]
    assert main(command) == 0
    table = json.loads(capsys.readouterr().out)
    for row in table["variants"]:
        assert row["tuned"] == {"train.lr": pytest.approx(10**0.5, rel=1e-3)}
        assert row["edge"] == ["lr"]
        assert "edge" in row["verdict"]
        assert row["steps"] == 40
    lengths = [len(path.read_text().splitlines()) for path in Path("runs/r-compare/store").glob("train-*/metrics.jsonl")]
    steps = [
        max(json.loads(line)["step"] for line in path.read_text().splitlines()) for path in Path("runs/r-compare/store").glob("train-*/metrics.jsonl")
    ]
    assert sorted(steps) == [20] * 6 + [40] * 4
    assert sum(steps) == 2 * 2 * 70
    assert len(lengths) == 10
    before = {path: path.stat().st_mtime_ns for path in Path("runs/r-compare/store").iterdir()}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs/r-compare/store").iterdir()}


def test_tuning_by_optuna_repeats_itself(toy):
    pytest.importorskip("optuna")
    tune = {"lr": 5}
    first = compare.compare("r.toml", {"words": [1]}, Path("a"), budget="steps=100", tune=tune, tuner="optuna")
    again = compare.compare("r.toml", {"words": [1]}, Path("b"), budget="steps=100", tune=tune, tuner="optuna")
    assert first["variants"][0]["tuned"] == again["variants"][0]["tuned"]
    assert len(list(Path("a/store").glob("train-*"))) == 6
    assert first["variants"][0]["tuned"]["train.lr"] > 1.0


def test_tuning_needs_a_budget_and_a_key_that_is_there(toy, capsys):
    assert main(["compare", "r.toml", "--vary", "words=1,2", "--tune", "lr=3", "--quiet"]) == 2
    assert "--budget" in capsys.readouterr().err
    assert main(["compare", "r.toml", "--vary", "words=1,2", "--tune", "beta=3", "--budget", "steps=60", "--quiet"]) == 2
    assert "no 'beta' to tune" in capsys.readouterr().err
    assert not Path("runs/r-compare/store").exists()


def test_later_variants_are_added_to_the_earlier_ones_of_the_same_budget(toy):
    compare.compare("r.toml", {"lr": [0.5, 1.0]}, Path("a"), budget="steps=20", seeds=2)
    table = compare.compare("r.toml", {"lr": [2.0]}, Path("a"), budget="steps=20", seeds=2)
    assert [row["settings"]["lr"] for row in table["variants"]] == [2.0, 1.0, 0.5]
    other = compare.compare("r.toml", {"lr": [2.0]}, Path("a"), budget="steps=30", seeds=2)
    assert [row["settings"]["lr"] for row in other["variants"]] == [2.0]


def test_rows_of_another_number_of_seeds_say_so(toy):
    compare.compare("r.toml", {"lr": [0.5]}, Path("a"), budget="steps=20", seeds=1)
    table = compare.compare("r.toml", {"lr": [1.0]}, Path("a"), budget="steps=20", seeds=2)
    assert [row["seeds"] for row in table["variants"]] == [2, 1]
    cells = compare_page.cells(table)
    assert "1 seed" in cells[1][-1]
    assert "seed" not in cells[0][-1]
    assert "2 seeds each, where nothing else is said" in compare_page.explained(table)[0]


def test_trainings_of_another_share_of_the_budget_are_not_compared(toy):
    """With tuning a training's length depends on how many seeds share the total with the trials."""
    compare.compare("r.toml", {"lr": [0.5]}, Path("a"), budget="steps=40", tune={"lr": 2}, seeds=1)
    table = compare.compare("r.toml", {"lr": [1.0]}, Path("a"), budget="steps=40", tune={"lr": 2}, seeds=2)
    assert [row["settings"]["lr"] for row in table["variants"]] == [1.0]


def test_who_helped_whom_is_told_by_domain_and_task(toy, capsys):
    table = compare.compare("r.toml", {"lr": [0.5, 2.0]}, Path("a"), budget="steps=20", seeds=2)
    head, parts = compare_page.helped(table)
    assert head == ["", "lr=0.5", "lr=2.0 less it"]
    for name, base, other in parts:
        by = {row["name"]: row["parts"][name] for row in table["variants"]}
        assert (base, other) == (f"{by['lr=0.5']:.4f}", f"{by['lr=2.0'] - by['lr=0.5']:+.4f}")
    assert [name for name, _, _ in parts] == ["code (held-out)", "prose (held-out)", "next_token", "z_loss"]
    assert "who was helped" in compare_page.text(table | {"folder": "a"})
    table["variants"][0]["law"] = {"code": {"code": 0.5, "prose": -0.25}, "prose": {"code": 0.0, "prose": 1.0}}
    assert "-0.250" in compare_page.text(table | {"folder": "a"})
    made = Curve("x")
    made.steps = [{"step": n, "tokens": n, "terms": {"text/next_token": 9.0 - n} | ({"masked/mae": 1.0} if n % 2 else {})} for n in range(8)]
    assert made.parts() == {"text/next_token": 2.0, "masked/mae": 1.0}


def test_a_target_is_reached_where_the_first_measure_is_below_it(toy):
    """The toy measures every five steps; the target is what the first variant ends at."""
    table = compare.compare("r.toml", {"lr": [0.5, 2.0, 0.1]}, Path("a"), budget="steps=40", seeds=3)
    by = {row["settings"]["lr"]: row for row in table["variants"]}
    assert by[0.5]["steps_to_target"] == 40
    assert by[0.5]["reached"] == 3
    assert by[2.0]["steps_to_target"] in (10, 15)
    assert by[2.0]["tokens_to_target"] == 100 * by[2.0]["steps_to_target"]
    assert by[0.1]["steps_to_target"] is None
    assert by[0.5]["interval"] == pytest.approx(4.303 * by[0.5]["spread"] / 3**0.5, rel=1e-3)
    told = compare.compare("r.toml", {"lr": [0.5, 2.0, 0.1]}, Path("a"), budget="steps=40", seeds=3, target=0.0)
    assert all(row["steps_to_target"] is None for row in told["variants"])


def test_the_median_over_seeds_is_what_counts_to_a_target():
    def curve(step):
        made = Curve("x")
        made.steps = [{"step": step, "tokens": 10 * step, "seconds": step, "flops": 50 * step}]
        made.evaluations = [{"step": step, "tokens": 10 * step, "evaluation": {"bits_per_byte": {"a": 1.0}}}]
        return made

    missed = Curve("x")
    variant = compare_table.Variant({}, curves=[curve(10), curve(30), missed], infos=[{}] * 3)
    assert compare_table.to_target(variant, 1.0)["steps_to_target"] == 30
    assert compare_table.to_target(variant, 1.0)["flops_to_target"] == 1500
    variant = compare_table.Variant({}, curves=[curve(10), missed, missed], infos=[{}] * 3)
    assert compare_table.to_target(variant, 1.0)["steps_to_target"] is None


def test_memory_is_a_limit_and_the_frontier_is_what_none_beats(toy):
    table = compare.compare("r.toml", {"lr": [0.5, 2.0]}, Path("a"), budget="steps=20,memory=50M")
    assert all(row["over"] and "more than 50 MB" in row["verdict"] for row in table["variants"])
    assert (Path("a") / "pareto_memory.png").stat().st_size > 1000
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (3.0, 2.5), "d": (2.0, 2.0), "e": (4.0, 1.0)}
    assert compare_page.pareto(points) == ["a", "b", "d", "e"]


def test_values_with_commas_inside():
    assert compare_options.parse_vary(["a=[1, 2],[3]", "b={ c = 1, d = 2 },x", 'e="p,q",r']) == {
        "a": [[1, 2], [3]],
        "b": [{"c": 1, "d": 2}, "x"],
        "e": ["p,q", "r"],
    }
