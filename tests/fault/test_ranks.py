"""Ranks that `bessemer run` starts: the same training as one process, and a clear, quick end when one of them fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from bessemer import cli
from bessemer.models.package import load
from bessemer.objectives.next_token import NextToken
from tests.corpus import corpus, recipe

ADAMW = '[{ name = "adamw", lr = 0.003, eps = 1e-3 }]'


class Stumbling(NextToken):
    """next_token, but one rank raises, dies or sleeps at one sample."""

    def __init__(self, *, how: str, at: int = 17):
        super().__init__()
        self.how, self.at = how, at

    def __call__(self, outputs, batch):
        if os.environ.get("STUMBLED") != "never" and batch.samples is not None and self.at in batch.samples.tolist():
            Path(os.environ["STUMBLED"]).write_text(str(os.getpid()))
            if self.how == "raise":
                raise ValueError(f"stumbled on rank {dist.get_rank()}")
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "orphaned":
                os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return super().__call__(outputs, batch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, its tokens, and what one process trains on them."""
    folder = tmp_path_factory.mktemp("ranks")
    os.environ["STUMBLED"] = str(folder / "stumbled")
    corpus(folder / "corpus")
    (folder / "base.toml").write_text(recipe(folder / "corpus", steps=6, optim=ADAMW))
    assert cli.main(["run", str(folder / "base.toml"), "--out", str(folder / "base"), "--quiet"]) == 0
    return folder


def run(made, name, *overrides, **train):
    """Trains on the tokens that stand already; the status and the stage's folder."""
    head, _, stages = recipe(made / "corpus", **({"optim": ADAMW, "steps": 6} | train)).partition("[[stage]]")
    inputs = f'inputs = {{ tokens = "{made}/base/tokenize", tokenizer = "{made}/base/train_tokenizer" }}\n'
    path = made / f"{name}.toml"
    path.write_text(head + "[[stage]]" + stages.split("[[stage]]")[-1] + inputs)
    status = cli.main(["run", str(path), *overrides, "--out", str(made / name), "--quiet"])
    assert [child for child in psutil.Process().children(recursive=True) if "bessemer.run.rank" in " ".join(child.cmdline())] == []
    return status, made / name / "train"


def seconds_since_the_fall(made):
    return time.time() - (made / "stumbled").stat().st_mtime


def losses(folder):
    return [line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def test_ranks_train_what_one_process_trains(made):
    status, folder = run(made, "four", "mesh.data=2", "mesh.tensor=2")
    assert status == 0
    assert losses(folder) == pytest.approx(losses(made / "base/train"), rel=1e-5)
    one, four = load(made / "base/train").state_dict(), load(folder).state_dict()
    assert one.keys() == four.keys()
    for name, value in one.items():
        assert (four[name] - value).norm() <= 1e-4 * value.norm(), name
    assert json.loads((folder / "manifest.json").read_text())["info"]["mesh"]["tensor"] == 2


@pytest.mark.parametrize(("how", "said"), [("raise", "ValueError: stumbled on rank 1"), ("die", "died of signal SIGSEGV")])
def test_a_rank_that_fails_ends_the_run_and_is_named(made, capsys, how, said):
    status, _ = run(made, how, "mesh.data=2", task=f'[{{ objective = {{ name = "tests.fault.test_ranks.Stumbling", how = "{how}", at = 18 }} }}]')
    assert status == 1
    told = capsys.readouterr().err
    assert "rank 1 of 2 failed" in told
    assert said in told
    assert "last collective" in told
    assert seconds_since_the_fall(made) < 30
    crash = next((made / how).glob("crash-*.txt")).read_text()
    assert "in __call__" in crash


@pytest.mark.parametrize(("how", "who"), [("killed", "rank 1 of 2"), ("orphaned", "the process that starts the ranks")])
def test_a_process_that_is_killed_is_no_fault_in_the_program(made, capsys, how, who):
    status, _ = run(made, how, "mesh.data=2", task=f'[{{ objective = {{ name = "tests.fault.test_ranks.Stumbling", how = "{how}", at = 18 }} }}]')
    assert status == 2
    told = capsys.readouterr().err
    assert f"{who} was killed (SIGKILL)" in told
    assert "memory ran out" in told
    assert "the same command goes on" in told
    assert seconds_since_the_fall(made) < 15
    rank = int((made / "stumbled").read_text())
    assert not psutil.pid_exists(rank) or psutil.Process(rank).status() == psutil.STATUS_ZOMBIE


def test_a_rank_that_hangs_ends_the_run_and_is_named(made, capsys):
    status, _ = run(made, "hang", "mesh.data=2", task='[{ objective = { name = "tests.fault.test_ranks.Stumbling", how = "hang", at = 18 } }]')
    assert status == 1
    assert seconds_since_the_fall(made) < 30
    told = capsys.readouterr().err
    assert "rank 1 of 2 hangs" in told
    assert "last collective: " in told
    assert "test_ranks.py" in next((made / "hang").glob("crash-*.txt")).read_text()


def test_a_mistake_is_told_as_one_process_tells_it(made, capsys):
    status, _ = run(made, "odd", "mesh.tensor=3")
    assert status == 2
    assert "can't be shared evenly by 3 ranks" in capsys.readouterr().err


def test_what_two_ranks_began_four_go_on_with(made, monkeypatch):
    """The checkpoint of one layout is loaded under another, and the loss goes on as one process's."""
    hooks = '[{ name = "save", every = 2 }]'
    task = '[{ objective = { name = "tests.fault.test_ranks.Stumbling", how = "raise", at = 14 } }]'
    assert run(made, "again", "mesh.data=2", task=task, hooks=hooks)[0] == 1
    assert next((made / "again").glob(".train.*.partial/checkpoints/step-00000002")).is_dir()
    monkeypatch.setenv("STUMBLED", "never")
    status, folder = run(made, "again", "mesh.data=2", "mesh.tensor=2", task=task, hooks=hooks)
    assert status == 0
    assert losses(folder) == pytest.approx(losses(made / "base/train"), rel=1e-5)


def test_a_launchers_processes_join_and_train_the_same(made):
    """Under torchrun the same command on every rank is one run."""
    path = made / "joined.toml"
    head, _, stages = recipe(made / "corpus", optim=ADAMW, steps=6).partition("[[stage]]")
    inputs = f'inputs = {{ tokens = "{made}/base/tokenize", tokenizer = "{made}/base/train_tokenizer" }}\n'
    path.write_text(head + "[[stage]]" + stages.split("[[stage]]")[-1] + inputs)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bessemer"]
    command += ["run", str(path), "mesh.pipe=2", "--out", str(made / "joined"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(made / "joined/train") == pytest.approx(losses(made / "base/train"), rel=1e-5)
    assert sum("evaluation" in line for line in (made / "joined/train/metrics.jsonl").read_text().splitlines()) > 0
