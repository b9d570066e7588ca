"""Mistakes in recipes, folders and commands: each is told with its place and its mend, nothing is overwritten, no traceback is shown."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bessemer.cli import main

GOOD = '[[stage]]\ndo = "run_toys.write"\nname = "write"\n\n[[stage]]\ndo = "run_toys.count"\nname = "count"\n'
TRAIN = GOOD + '\n[[stage]]\ndo = "run_toys.train"\nname = "train"\n'


@dataclass
class Case:
    """A command that must fail, and what its message must hold."""

    name: str
    argv: list[str]
    says: list[str]
    recipe: str = GOOD
    before: Callable[[Path], None] | None = None
    files: dict[str, str] = field(default_factory=dict)


def finished(here: Path) -> None:
    assert main(["run", "r.toml", "--quiet"]) == 0


def smoked(here: Path) -> None:
    assert main(["run", "r.toml", "--quiet", "--smoke", "--out", "runs/r"]) == 0


def altered(here: Path) -> None:
    finished(here)
    file = here / "runs/r/write/text.txt"
    file.write_text(file.read_text().replace("low", "LOW"))


def truncated(here: Path) -> None:
    finished(here)
    (here / "runs/r/write/text.txt").write_text("l")


def lost(here: Path) -> None:
    finished(here)
    (here / "runs/r/write/text.txt").unlink()


def torn_manifest(here: Path) -> None:
    finished(here)
    file = here / "runs/r/write/manifest.json"
    file.write_text(file.read_text()[:50])


def torn_owner(here: Path) -> None:
    finished(here)
    (here / "runs/r/run.json").write_text("{")


def nobody(here: Path) -> None:
    finished(here)
    (here / "runs/r/run.json").write_text("[]")


def other_format(here: Path) -> None:
    finished(here)
    file = here / "runs/r/write/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))


def locked(here: Path) -> None:
    """Another process holds the folder while the command runs."""
    finished(here)
    import subprocess

    code = "import fcntl,os,sys,time; h=os.open('runs/r/.lock',os.O_RDWR); fcntl.lockf(h,fcntl.LOCK_EX); print('held',flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    HOLDERS.append(holder)


HOLDERS: list = []


def other_run(here: Path) -> None:
    (here / "other.toml").write_text(GOOD)
    assert main(["run", "other.toml", "--quiet", "--out", "runs/r"]) == 0


def in_the_way(here: Path) -> None:
    """A folder of someone's stands where the stage's artifact belongs."""
    (here / "runs/r/write").mkdir(parents=True)
    (here / "runs/r/run.json").write_text(json.dumps({"recipe": "r", "smoke": False, "what": "run"}))
    (here / "runs/r/write/mine.txt").write_text("mine")


def unreadable(here: Path) -> None:
    (here / "bad.toml").write_bytes(b"\xff\xfe\x00x")


def stage(text: str) -> str:
    return GOOD + text


RUN = ["run", "r.toml"]
CASES = [
    # recipes
    Case("no recipe", ["run", "nosuch.toml"], ["nosuch.toml", "no such recipe"]),
    Case("misspelt shipped recipe", ["run", "demmo"], ["demmo", "did you mean 'demo'"]),
    Case("a folder for a recipe", ["run", "sub"], ["sub", "no such recipe"], files={"sub/x": ""}),
    Case("invalid TOML", RUN, ["r.toml", "not valid TOML", "line 1"], recipe="= 3\n"),
    Case("not text", ["run", "bad.toml"], ["bad.toml", "can't be read"], before=unreadable),
    Case("empty recipe", RUN, ["r.toml", "no [[stage]]"], recipe=""),
    Case("unknown top key", RUN, ["r.toml", "sead", "did you mean 'seed'"], recipe="sead = 1\n" + GOOD),
    Case("seed is text", RUN, ["r.toml", "seed", "'one'"], recipe='seed = "one"\n' + GOOD),
    Case("seed is a truth value", RUN, ["r.toml", "seed", "True"], recipe="seed = true\n" + GOOD),
    Case("stage's seed is text", RUN, ["r.toml", "write.seed", "'one'"], recipe=GOOD.replace('name = "write"', 'name = "write"\nseed = "one"')),
    Case("stage is a table", RUN, ["r.toml", "stage", "[[stage]]"], recipe='[stage]\ndo = "write"\n'),
    Case("stage without do", RUN, ["r.toml", "stage[2].do", "what to do"], recipe=stage("[[stage]]\nwords = 3\n")),
    Case("unknown stage", RUN, ["r.toml", "report", "did you mean 'report'"], recipe=stage('[[stage]]\ndo = "reprot"\n')),
    Case("stage outside, no module", RUN, ["r.toml", "nowhere.thing", "can't be imported"], recipe=stage('[[stage]]\ndo = "nowhere.thing"\nname = "x"\n')),
    Case("stage outside, no such function", RUN, ["r.toml", "run_toys.wrote"], recipe=stage('[[stage]]\ndo = "run_toys.wrote"\nname = "x"\n')),
    Case("name of a stage has a dot", RUN, ["r.toml", "stage[2].name", "'a.b'"], recipe=stage('[[stage]]\ndo = "run_toys.gather"\nname = "a.b"\n')),
    Case("not a stage", RUN, ["r.toml", "x.do", "'text'", "Artifact"], recipe=stage('[[stage]]\ndo = "run_toys.no_stage"\nname = "x"\n')),
    Case("two stages of one name", RUN, ["r.toml", "stage[2].name", "'write'"], recipe=stage('[[stage]]\ndo = "run_toys.write"\nname = "write"\n')),
    Case("name of a stage leads outside", RUN, ["r.toml", "../up", "stage[2].name"], recipe=stage('[[stage]]\ndo = "run_toys.write"\nname = "../up"\n')),
    Case("extends itself", RUN, ["r.toml", "extends", "itself"], recipe='extends = "r.toml"\n'),
    Case("extends a circle", RUN, ["extends", "itself"], recipe='extends = "b.toml"\n', files={"b.toml": 'extends = "r.toml"\n'}),
    Case("extends nothing", RUN, ["nosuch", "no such recipe"], recipe='extends = "nosuch"\n' + GOOD),
    Case("extends a number", RUN, ["r.toml", "extends", "3"], recipe="extends = 3\n" + GOOD),
    Case("name is a path", RUN, ["r.toml", "name", "../evil"], recipe='name = "../evil"\n' + GOOD),
    Case("unknown option", RUN, ["r.toml", "write.wrods", "did you mean 'words'"], recipe=GOOD.replace('name = "write"', 'name = "write"\nwrods = 3')),
    Case("wrong type", RUN, ["r.toml", "write.words", "'three'"], recipe=GOOD.replace('name = "write"', 'name = "write"\nwords = "three"')),
    Case("fraction for a whole number", RUN, ["r.toml", "write.words", "3.5"], recipe=GOOD.replace('name = "write"', 'name = "write"\nwords = 3.5')),
    Case("none of the allowed values", RUN, ["r.toml", "write.mood", "'mid'"], recipe=GOOD.replace('name = "write"', 'name = "write"\nmood = "mid"')),
    Case("value refused by the stage", RUN, ["r.toml", "write.words", "-1"], recipe=GOOD.replace('name = "write"', 'name = "write"\nwords = -1')),
    Case("missing option", RUN, ["r.toml", "imp.path", "missing"], recipe=stage('[[stage]]\ndo = "import_model"\nname = "imp"\n')),
    Case("unknown method", RUN, ["r.toml", "train.optim[0].name", "'wds'", "did you mean 'wsd'"], recipe=TRAIN + 'optim = ["wds"]\n'),
    Case("unknown option of a method", RUN, ["r.toml", "train.optim[1].flor", "did you mean 'floor'"], recipe=TRAIN + 'optim = ["wsd", {name = "wsd", flor = 1.0}]\n'),
    Case("wrong type in a method", RUN, ["r.toml", "train.optim[0].floor", "'low'"], recipe=TRAIN + 'optim = [{name = "wsd", floor = "low"}]\n'),
    Case("a method is a number", RUN, ["r.toml", "train.optim[0]", "a name"], recipe=TRAIN + "optim = [3]\n"),
    Case("role is a number", RUN, ["r.toml", "train.optim[0].role"], recipe=TRAIN + 'optim = [{name = "wsd", role = 3}]\n'),
    Case("a word where a list is wanted", ["run", "demo", 'collect.sources=[{name = "text", files = "x/*.md"}]'], ["collect.sources[0].files", 'write a list: ["x/*.md"]']),
    Case("a number out of range", ["run", "demo", 'train.optim=[{name = "adamw", lr = -1.0}]'], ["train.optim[0].lr", "-1.0"]),
    # wiring
    Case("needs what nothing makes", RUN, ["r.toml", "count.inputs", "text"], recipe='[[stage]]\ndo = "run_toys.count"\nname = "count"\n'),
    Case("needs what a later stage makes", RUN, ["r.toml", "count", "text"], recipe='[[stage]]\ndo = "run_toys.count"\nname = "count"\n' + '[[stage]]\ndo = "run_toys.write"\nname = "w"\n'),
    Case("input no one takes", RUN, ["r.toml", "count.inputs.txt", "did you mean 'text'"], recipe=GOOD + 'inputs = {txt = "write"}\n'),
    Case("input from nowhere", RUN, ["r.toml", "count.inputs.text", "'wirte'", "did you mean 'write'"], recipe=GOOD + 'inputs = {text = "wirte"}\n'),
    Case("input of another kind", RUN, ["r.toml", "two.inputs.text", "makes a count"], recipe=stage('[[stage]]\ndo = "run_toys.count"\nname = "two"\ninputs = {text = "count"}\n')),
    Case("inputs is no table", RUN, ["r.toml", "count.inputs"], recipe=GOOD + 'inputs = "write"\n'),
    Case("folder of another kind", ["run", "s.toml"], ["runs/r/count", "holds a count", "text is wanted", "the run has a text in runs/r/write"], before=finished,
         files={"s.toml": '[[stage]]\ndo = "run_toys.count"\nname = "c"\ninputs = {text = "runs/r/count"}\n'}),
    Case("folder that is no artifact", ["run", "s.toml"], ["heap", "manifest.json"],
         files={"heap/x": "", "s.toml": '[[stage]]\ndo = "run_toys.count"\nname = "c"\ninputs = {text = "heap"}\n'}),
    # overrides
    Case("override without a value", [*RUN, "words"], ["'words'", "key=value"]),
    Case("override of nothing", [*RUN, "=3"], ["'=3'", "key=value"]),
    Case("override of an unknown key", [*RUN, "wrods=3"], ["wrods", "did you mean 'words'"]),
    Case("override of an unknown key in a stage", [*RUN, "write.wrods=3"], ["write.wrods", "did you mean 'words'"]),
    Case("override of an unknown stage", [*RUN, "wirte.words=3"], ["wirte", "did you mean 'write'"]),
    Case("override of a wrong type", [*RUN, "words=many"], ["write.words", "'many'"]),
    Case("override beyond a list", [*RUN, "optim.5.floor=1.0"], ["optim.5.floor", "2 entries"], recipe=TRAIN),
    Case("override inside a number", [*RUN, "words.deep.down=1"], ["write.words"]),
    Case("override of a stage by a value", [*RUN, "write=3"], ["write", "key"]),
    Case("override of inputs by a name", [*RUN, "count.inputs=write"], ["count.inputs"]),
    # folders
    Case("out is a file", [*RUN, "--out", "file"], ["file", "--out"], files={"file": "x"}),
    Case("out is under a file", [*RUN, "--out", "file/run"], ["file/run", "--out"], files={"file": "x"}),
    Case("out holds something else", [*RUN, "--out", "heap"], ["heap", "not empty", "--out"], files={"heap/mine.txt": "mine"}),
    Case("out is another recipe's run", [*RUN, "--out", "runs/r"], ["runs/r", "'other'", "--out"], before=other_run),
    Case("out is a smoke run", [*RUN, "--out", "runs/r"], ["runs/r", "smoke", "--out"], before=smoked),
    Case("out is a comparison's", ["compare", "r.toml", "--vary", "lr=1.0,2.0", "--out", "runs/r"], ["runs/r", "comparison", "--out"], recipe=TRAIN, before=finished),
    Case("run.json is torn", RUN, ["runs/r/run.json", "not whole JSON"], before=torn_owner),
    Case("run.json is nobody's", RUN, ["runs/r/run.json"], before=nobody),
    Case("a run is going on", RUN, ["runs/r", "process"], before=locked),
    Case("something in a stage's place", RUN, ["runs/r/write", "no artifact"], before=in_the_way),
    Case("out where nothing can be made", [*RUN, "--out", "/proc/xx"], ["/proc/xx", "can't be written", "--out"]),
    Case("out below where nothing can be made", [*RUN, "--out", "/proc/xx/r"], ["/proc/xx/r", "can't be written", "--out"]),
    Case("answer where nothing can be made", ["methods", "wsd", "--out", "/proc/xx"], ["/proc/xx", "can't be written", "--out"]),
    # artifacts
    Case("artifact altered", RUN, ["runs/r/write/text.txt", "checksum", "delete the folder"], before=altered),
    Case("artifact truncated", RUN, ["runs/r/write/text.txt", "1 bytes", "delete the folder"], before=truncated),
    Case("artifact's file lost", RUN, ["runs/r/write/text.txt", "missing", "delete the folder runs/r/write and"], before=lost),
    Case("manifest torn", RUN, ["runs/r/write/manifest.json", "not whole JSON"], before=torn_manifest),
    Case("manifest of another format", RUN, ["runs/r/write/manifest.json", "99"], before=other_format),
    # commands
    Case("unknown command", ["rnu"], ["'rnu'", "did you mean 'run'"]),
    Case("no recipe named", ["run"], ["required: recipe\n"]),
    Case("import of a run", ["import", "runs/r"], ["runs/r", "config.json", "mend: name runs/r/export"], files={"runs/r/export/config.json": "{}"}),
    Case("import of a model of ours", ["import", "m", "--out", "new"], ["model of ours already"], files={"m/model.json": "{}"}),
    Case("ranks of no dry run", [*RUN, "--ranks", "4"], ["--ranks", "dry run", "train.mesh.data=4"]),
    Case("unknown flag", [*RUN, "--smok"], ["--smok", "did you mean '--smoke'"]),
    Case("flag without a value", [*RUN, "--out"], ["--out"]),
    Case("unknown method to look up", ["methods", "wds"], ["'wds'", "did you mean 'wsd'"]),
    Case("report of no folder", ["report", "nosuch"], ["nosuch", "no such folder"]),
    Case("report of a heap", ["report", "heap"], ["heap", "no run"], files={"heap/x": ""}),
    Case("generate from no folder", ["generate", "nosuch", "--prompt", "a"], ["nosuch", "no such folder"]),
    Case("generate from a heap", ["generate", "heap", "--prompt", "a"], ["heap", "no model"], files={"heap/x": ""}),
    Case("generate nothing", ["generate", "heap", "--prompt", "a", "--number", "0"], ["--number", "0"], files={"heap/x": ""}),
    Case("prompt is no text", ["generate", "heap", "--prompt", "a\udcff"], ["--prompt", "not UTF-8"], files={"heap/x": ""}),
    Case("temperature is a word", ["generate", "heap", "--temperature", "hot"], ["--temperature", "hot"], files={"heap/x": ""}),
    Case("evaluate no folder", ["evaluate", "nosuch"], ["nosuch", "no such folder"]),
    Case("evaluate an unknown task", ["evaluate", "heap", "bits_per_bite"], ["bits_per_bite", "did you mean 'bits_per_byte'"], files={"heap/x": ""}),
    Case("option of no task", ["evaluate", "heap", "cloze.path=x"], ["cloze.path", "name the task"], files={"heap/x": ""}),
    Case("export no folder", ["export", "nosuch"], ["nosuch", "no such folder"]),
    Case("export in an unknown type", ["export", "heap", "--dtype", "int3"], ["--dtype", "int3"], files={"heap/x": ""}),
    Case("import no folder", ["import", "nosuch"], ["nosuch", "no such folder"]),
    Case("import a heap", ["import", "heap", "--out", "new"], ["heap", "config.json"], files={"heap/x": ""}),
    Case("import over something", ["import", "heap", "--out", "full"], ["full", "not empty"], files={"heap/config.json": "{}", "full/mine": "x"}),
    Case("vary nothing", ["compare", "r.toml"], ["--vary"], recipe=TRAIN),
    Case("vary without values", ["compare", "r.toml", "--vary", "lr"], ["--vary", "'lr'"], recipe=TRAIN),
    Case("vary an unknown key", ["compare", "r.toml", "--vary", "rl=1.0,2.0"], ["rl", "did you mean 'lr'"], recipe=TRAIN),
    Case("vary to a wrong type", ["compare", "r.toml", "--vary", "lr=1.0,fast"], ["train.lr", "'fast'"], recipe=TRAIN),
    Case("vary a key twice", ["compare", "r.toml", "--vary", "lr=1.0", "--vary", "lr=2.0"], ["'lr'", "twice"], recipe=TRAIN),
    Case("vary to one value twice", ["compare", "r.toml", "--vary", "lr=1.0,1.0"], ["twice"], recipe=TRAIN),
    Case("budget of nothing", ["compare", "r.toml", "--vary", "lr=1.0,2.0", "--budget", "euros=3"], ["--budget", "euros=3"], recipe=TRAIN),
    Case("budget below nothing", ["compare", "r.toml", "--vary", "lr=1.0,2.0", "--budget", "steps=-3"], ["--budget", "steps=-3"], recipe=TRAIN),
    Case("no seeds", ["compare", "r.toml", "--vary", "lr=1.0,2.0", "--seeds", "0"], ["--seeds"], recipe=TRAIN),
    Case("nothing trains", ["compare", "r.toml", "--vary", "words=1,2"], ["r.toml", "train"]),
    Case("answer over a folder", ["methods", "wsd", "--out", "heap"], ["heap", "--out"], files={"heap/x": ""}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case: Case, here, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 - a stand-in for the terminal
    (here / "r.toml").write_text(case.recipe)
    for name, content in case.files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content)
    if case.before:
        case.before(here)
    capsys.readouterr()
    tree = snapshot(here)
    try:
        status = main(case.argv)
    finally:
        while HOLDERS:
            holder = HOLDERS.pop()
            holder.kill()
            holder.wait()
    said = capsys.readouterr()
    assert status == 2, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    for words in case.says:
        assert words in said.err, said.err
    now = snapshot(here)
    changed = {name for name, content in tree.items() if now.get(name) != content}
    assert not changed, "files were changed or lost"
    if case.before is None and case.argv[:1] != ["run"]:
        assert now == tree, "something was written"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` but the logs and locks a run may add to."""
    own = ("log.txt", ".lock", "recipe.json", "recipe.toml")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in own}


def test_what_is_interrupted_says_so(here, capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("bessemer.run.models.tasks", interrupted)
    assert main(["evaluate", "runs/r", "--json"]) == 130
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": "stopped before it was done", "status": 130}
    assert "stopped" in said.err


def test_a_piped_prompt_that_is_no_text(here, capsys, monkeypatch):
    for errors in ("strict", "surrogateescape"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8", errors=errors))
        assert main(["generate", "heap"]) == 2
        assert "stdin: is not UTF-8" in capsys.readouterr().err


def test_json_says_the_error_as_one_object(here, capsys):
    assert main(["run", "nosuch.toml", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == 2
    assert "nosuch.toml" in said["error"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(here, capsys):
    (here / "r.toml").write_text(GOOD)
    (here / "shut").mkdir(mode=0o500)
    assert main(["run", "r.toml", "--out", "shut/run"]) == 2
    assert "shut/run" in capsys.readouterr().err


def test_a_full_disk(here, capsys, monkeypatch):
    import errno

    import run_toys

    def write(work, *, words: int = 3) -> run_toys.Text:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_toys, "write", write)
    write.__annotations__ = {"return": run_toys.Text, "words": int}
    (here / "r.toml").write_text(GOOD)
    assert main(["run", "r.toml"]) == 2
    said = capsys.readouterr().err
    assert "disk is full" in said
    assert "runs/r" in said


def test_a_fault_of_ours_is_kept_in_a_file(here, capsys):
    (here / "r.toml").write_text('[[stage]]\ndo = "run_toys.fault"\nname = "fault"\n')
    assert main(["run", "r.toml", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    (crash,) = (here / "runs/r").glob("crash-*.txt")
    assert "ZeroDivisionError" in crash.read_text()
    assert str(crash.relative_to(here)) in said
