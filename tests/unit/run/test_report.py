"""The report: whole, self-contained, of a going run too, and nothing a model writes becomes markup."""

from __future__ import annotations

import json
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bessemer.cli import main
from bessemer.core import recipe as recipes
from bessemer.core.work import Stopped
from bessemer.run import observe, report, report_data, report_plots, runner

STAGES = [{"do": "run_toys.write"}, {"do": "run_toys.train"}, {"do": "report"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runner.run(recipes.read({"name": "r", "stage": STAGES}), tmp_path_factory.mktemp("run") / "out")


def test_the_page_stands_alone(run):
    page = (run.folder / "report/report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 10
    names = {path.stem for path in (run.folder / "report").glob("*.png")}
    assert names == {"loss", "held_out", "learning_rate", "gradient_norm", "noise_scale", "speed", "memory", "energy", "time", "stages"}
    for said in (
        "finished",
        "held-out bits per byte, code",
        "too short",
        "energy, estimated",
        "noise scale",
        "the loss is inf",
        "[[stage]]",
        "torch",
    ):
        assert said in page, said


def test_the_page_is_well_formed(run):
    class Checks(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checks = Checks()
    checks.feed((run.folder / "report/report.html").read_text())
    assert checks.open == []


def test_what_a_model_writes_is_shown_and_not_done(run):
    page = (run.folder / "report/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_going_run_has_a_report(here, capsys):
    class Stops(observe.Watch):
        def progress(self, stage, done, total, unit, figures):
            os.kill(os.getpid(), signal.SIGINT)

    stages = [STAGES[0], STAGES[1], {"do": "run_toys.count", "inputs": {"text": "write"}}, STAGES[2]]
    with pytest.raises(Stopped):
        runner.run(recipes.read({"name": "r", "stage": stages}), Path("out"), watch=Stops())
    (here / "out/train").rename(here / "out/.train.12345678.partial")
    metrics = here / "out/.train.12345678.partial/metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 21, "tok')
    assert main(["report", "out"]) == 0
    assert "look at" in capsys.readouterr().out
    page = (here / "out/report-now/report.html").read_text()
    assert "unfinished" in page
    assert "held-out bits per byte" in page


def test_what_an_earlier_training_left_is_stale(here, capsys):
    stages = [STAGES[0], STAGES[1], {"do": "run_toys.gather", "inputs": {"made": "train"}}, STAGES[2]]
    recipe = {"name": "r", "stage": stages}
    runner.run(recipes.read(recipe), Path("out"))
    assert set(report.summary(report.gather(Path("out")))["stages"].values()) == {"done"}

    class Stops(observe.Watch):
        def begin(self, stage):
            raise Stopped

    with pytest.raises(Stopped):
        runner.run(recipes.read(recipe, ["train.lr=0.5"]), Path("out"), watch=Stops())
    told = report.summary(report.gather(Path("out")))
    assert told["stages"] == {"write": "done", "train": "begun", "gather": "stale", "report": "stale"}
    assert told["state"] != "finished"
    assert ">stale<" in (report.write(Path("out"), Path("page"))).read_text()


def test_a_run_that_has_only_begun(here):
    with pytest.raises(ZeroDivisionError):
        runner.run(recipes.read({"name": "r", "stage": [{"do": "run_toys.fault"}, *STAGES]}), Path("out"))
    assert report.write(Path("out"), Path("page")).exists()


def test_figures_that_are_not_finite_are_passed_over(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"step": 1, "tokens": 5, "loss": NaN}\n\n[3]\n{"step": 2, "tokens": 10, "loss": 2.5}\n{"step": 3, "loss": Infinity}\n{"st'
    )
    curve = report_data.read_metrics("train", tmp_path / "m.jsonl")
    assert curve.column("loss") == ([10.0], [2.5])
    assert set(report_plots.training(curve)) == {"loss"}


@pytest.mark.parametrize(
    ("evaluation", "scores"),
    [
        ({"bits_per_byte": 1.5}, {"all": 1.5}),
        ({"bits_per_byte": {"code": 1.0, "all": 1.5}}, {"code": 1.0}),
        ({"bits_per_byte": {"value": 1.5, "low": 1}}, {"all": 1.5}),
        ({"bits_per_byte": {"code": {"value": 1.0}, "prose": float("nan")}}, {"code": 1.0}),
        ({"cloze": 1}, {}),
    ],
)
def test_scores_by_domain(evaluation, scores):
    assert report_data.domain_scores(evaluation) == scores


def test_smoothing_keeps_a_constant_and_is_unbiased():
    assert report_plots.smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    assert report_plots.smooth([]) == []
    assert report_plots.smooth([7.0, 7.0])[0] == 7.0


def test_what_compiling_took_stands_by_itself(tmp_path):
    """The first step of each sitting, over which the clock of training stands still, against the usual step."""
    passes = [(9.0, 0.0), (1.0, 1.1), (1.0, 2.2), (6.0, 2.2), (1.0, 3.3)]
    lines = [
        {"step": step, "tokens": 8 * step, "loss": 1.0, "seconds": clock, "time": {"forward_backward": took, "update": 0.1}}
        for step, (took, clock) in enumerate(passes, start=1)
    ]
    lines.append({"step": 5, "tokens": 40, "seconds": 3.3, "evaluation": {"bits_per_byte": {"code": 2.0}}, "time": {"evaluation": 0.7}})
    lines.append({"step": 5, "time": {"saving": 0.2}})
    file = tmp_path / report_data.METRICS
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    timed = report_data.read_metrics("train", file).timed
    assert timed == pytest.approx({"forward_backward": 5.0, "update": 0.5, "compiling_and_warming_up": 13.0, "evaluation": 0.7, "saving": 0.2})
