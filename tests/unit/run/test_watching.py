"""What is shown of a run, the energy it took, and other small things a person sees."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import tomllib
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bessemer
from bessemer.cli import main
from bessemer.core import ranges, registry
from bessemer.run import catalogue, doctor, energy, observe, toml


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (3, "3"), (1234, "1,234"), (123456, "123.5k"), (2_000_000, "2M"), (1.5e12, "1.5T"), (0.123456, "0.1235"), (3.0, "3"), (1234.5, "1,234"),
     (float("nan"), "nan"), (float("inf"), "inf"), (True, "True"), ("word", "word"), (-2, "-2")],
)  # fmt: skip
def test_numbers(value, said):
    assert observe.number(value) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.04, "0.0s"), (12.3, "12s"), (59.7, "1m00s"), (72, "1m12s"), (11100, "3h05m"), (187200, "2d04h")])
def test_durations(seconds, said):
    assert observe.duration(seconds) == said


def test_pace_counts_from_where_it_began_to_watch():
    pace = observe.Pace()
    pace.see(500, now=10.0)
    assert pace.rate is None
    pace.see(520, now=12.0)
    assert pace.rate == 10.0
    assert pace.left(520, 600) == 8.0
    assert pace.left(520, None) is None
    pace.see(0, now=13.0)  # a new phase
    pace.see(5, now=14.0)
    assert pace.rate == 5.0


def test_pace_forgets_what_is_long_past():
    pace = observe.Pace(window=10)
    for second in range(100):
        pace.see(second if second < 50 else 50 + 3 * (second - 50), now=float(second))
    assert pace.rate == pytest.approx(3.0)


def test_lines_are_seldom():
    said: list[str] = []
    lines = observe.Lines(said.append, every=3600)
    lines.begin("train")
    for step in range(100):
        lines.progress("train", step, 100, "steps", {"loss": 3.0})
    lines.end("train", 1.0)
    assert said == ["train: begins", "train: done in 1.0s"]
    lines = observe.Lines(said.append, every=0)
    lines.progress("train", 50, 100, "steps", {"loss": 3.25, "tokens_per_second": 4000.0})
    assert said[-1] == "train: 50/100 steps  loss 3.25  tokens per second 4,000"


def test_the_live_display_takes_brackets_for_text():
    out = io.StringIO()
    live = observe.Live(["train"], out)
    live.begin("train")
    live.progress("train", 1, 2, "steps", {"domain": "[red]"})
    live.note("train", "a note with [brackets]")
    live.end("train", 3.0)
    live.close()
    assert "a note with [brackets]" in out.getvalue()


def test_a_busy_process_takes_energy(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    meter = energy.Meter()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        continue
    read = meter.read()
    if not meter._boards:
        assert not read.measured
        assert "estimated" in read.how
        assert read.joules + 0.1 >= 0.2 * energy.WATTS_PER_BUSY_CORE


def test_rapl_is_read_and_its_wrapping_counted(monkeypatch, tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package, counted in it already
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("5")
    (zone / "energy_uj").write_text("9000000")
    (zone / "max_energy_range_uj").write_text("10000000")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(energy, "_boards", list)
    meter = energy.Meter()
    (zone / "energy_uj").write_text("9500000")
    assert meter.read() == energy.Energy(0.5, True, "RAPL")
    (zone / "energy_uj").write_text("1000000")
    assert meter.read().joules == pytest.approx(2.0)
    assert meter.read().joules == pytest.approx(2.0)


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(VALUES)
def test_toml_reads_as_what_was_written(value):
    assert tomllib.loads(f"value = {toml.value(value)}")["value"] == value


def test_toml_of_a_recipe():
    plain = {
        "name": "r",
        "seed": 1,
        "stage": [{"do": "train", "name": "train", "inputs": {}, "steps": None, "optim": [{"name": "muon", "lr": 0.02}] * 8}],
    }
    read = tomllib.loads(toml.recipe(plain))
    assert read == {"name": "r", "seed": 1, "stage": [{"do": "train", "name": "train", "optim": [{"name": "muon", "lr": 0.02}] * 8}]}


def test_starting_is_quick_and_needs_no_torch():
    code = "import sys; from bessemer.cli import main; main(['--help']); main(['methods']); import bessemer; bessemer.methods(); assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=registry.PACKAGE.parent)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "argv", [[], ["--help"], ["help"], ["--version"], ["run", "--help"], ["compare", "--help"], ["generate", "--help"], ["doctor", "--help"]]
)
def test_help(argv, capsys):
    try:
        status = main(argv)
    except SystemExit as ended:  # argparse ends the process after a command's help
        status = ended.code
    assert not status
    assert capsys.readouterr().out


def test_methods_by_kind_and_name(capsys):
    assert main(["methods", "schedules"]) == 0
    assert "wsd" in capsys.readouterr().out
    assert main(["methods", "wsd"]) == 0
    said = capsys.readouterr().out
    assert "warmup: float from 0  = " in said
    assert "shape: 'linear' | 'sqrt'  = " in said
    assert "schedules/wsd.py" in said
    assert main(["methods", "wsd", "--json"]) == 0
    (method,) = json.loads(capsys.readouterr().out)["methods"]
    assert "warmup" in [option["name"] for option in method["options"]]


def test_every_method_can_be_shown():
    for entry in bessemer.methods():
        assert entry.summary, f"{entry.kind}/{entry.name} has no docstring"
        assert isinstance(catalogue.options(entry), list)


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (int, "int"),
        (float | None, "float | None"),
        (ranges.Count | registry.Auto, "int from 1 | 'auto'"),
        (ranges.Part, "float above 0 to 1"),
        (ranges.Betas, "list[float from 0 below 1] of 2"),
        (list[Annotated[registry.Choice, registry.Kind("optim", role=str)]], "list[method of optim]"),
        (dict[str, int], "dict[str, int]"),
    ],
)
def test_types_are_said_in_words(hint, said):
    assert catalogue.in_words(hint) == said


def test_the_catalogue_page_names_every_method_and_what_was_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.json").write_text('{"methods": {"wsd": {"gain": "3|4"}}}')
    (tmp_path / "torn.json").write_text("{")
    monkeypatch.setattr(catalogue, "RESULTS", tmp_path)
    assert main(["methods", "--markdown", "--out", str(tmp_path / "m.md")]) == 0
    page = (tmp_path / "m.md").read_text()
    for entry in bessemer.methods():
        assert f"[{entry.name}](" in page
    assert "gain 3\\|4" in page


def test_doctor_looks_without_measuring(here, capsys):
    assert main(["doctor", "--fast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 0
    assert "float32_peak" not in found
    assert main(["doctor", "--fast"]) == 0
    assert "memory" in capsys.readouterr().out


def test_doctor_says_what_is_missing_and_how_to_get_it(here):
    found = doctor.examine(here, measure=False) | {
        "compiler": None,
        "missing": ["ray"],
        "accelerators": [],
        "disk_free_bytes": 10**9,
        "threads": 1,
        "cores": 8,
    }
    said = " ".join(text for _, text in doctor.advice(found))
    for part in ("apt-get install g++", "pip install", "[ray]", "disk", "OMP_NUM_THREADS"):
        assert part in said
    numbers = found | {"float32_peak": 2e11, "bfloat16_peak": 4e11, "layers_peak": 7e11, "number_format": "bfloat16", "own_products": False}
    assert ("good", "training computes in bfloat16, whose matrix products are 2.0 times as fast as float32's here") in doctor.advice(numbers)
    assert "3.5 times as fast as torch's" in doctor.advice(numbers | {"number_format": "float32", "own_products": True})[0][1]


def test_from_python(here):
    result = bessemer.run({"name": "p", "stage": [{"do": "run_toys.write"}]}, quiet=True, **{"write.words": 2})
    assert result.artifacts["write"].info["words"] == 2
    assert result.folder.as_posix() == "runs/p"


def test_a_run_says_what_to_look_at(here, capsys):
    (here / "r.toml").write_text('[[stage]]\ndo = "run_toys.write"\n[[stage]]\ndo = "run_toys.train"\n[[stage]]\ndo = "report"\n')
    assert main(["run", "r.toml"]) == 0
    said = capsys.readouterr()
    assert "runs/r/report/report.html" in said.out
    assert "write: begins" in said.err
    assert main(["run", "r.toml", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [stage["made"] for stage in value["stages"].values()] == [False, False, False]
    assert (here / "runs/r/log.txt").read_text().count("unchanged, kept") == 3


def test_a_reader_that_goes_is_no_fault(tmp_path):
    """As when a model's text, which is written piece by piece, goes to `head`."""
    reading, writing = os.pipe()
    os.close(reading)
    program = "import sys; from bessemer import cli; cli._dispatch = lambda *_: sys.stdout.write('a piece'); sys.exit(cli.main(['generate']))"
    env = os.environ | {"PYTHONPATH": str(registry.PACKAGE.parent), "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (130, "")
