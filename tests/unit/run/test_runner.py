"""Running a recipe: made once, made again only where something changed, stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bessemer.core import recipe as recipes
from bessemer.core.errors import BessemerError
from bessemer.core.work import Stopped
from bessemer.run import folder, keys, observe, runner

TWO = {"name": "r", "stage": [{"do": "run_toys.write"}, {"do": "run_toys.count"}]}


def go(*overrides, recipe=TWO, **more):
    return runner.run(recipes.read(recipe, list(overrides)), Path("out"), **more)


def test_a_second_run_redoes_nothing(here):
    assert go().made == ["write", "count"]
    again = go()
    assert again.made == []
    assert again.artifacts["count"].hash == go().artifacts["count"].hash


def test_only_what_changed_and_what_rests_on_it_is_redone(here):
    go()
    assert go("count.steps=4").made == ["count"]
    assert go("count.steps=4", "words=9").made == ["write", "count"]


def test_the_same_content_made_again_spares_the_children(here, monkeypatch):
    """A stage whose code changed is done again; where it makes the same files from the same options, its children stand."""
    go()
    real = keys.code_version
    monkeypatch.setattr(keys, "code_version", lambda target: "new" if target.__name__ == "write" else real(target))
    assert go().made == ["write"]


def test_children_follow_the_content(here):
    first = go()
    second = go("words=4")
    assert second.artifacts["write"].hash != first.artifacts["write"].hash
    assert second.artifacts["count"].manifest["parents"]["write"] == second.artifacts["write"].hash


def test_changed_input_files_are_noticed(here):
    (here / "in.txt").write_text("a")
    assert go("path=in.txt").made == ["write", "count"]
    assert go("path=in.txt").made == []
    (here / "in.txt").write_text("abc")
    assert "write" in go("path=in.txt").made


@pytest.mark.parametrize("path", ["~/notes.txt", "~/*.txt", "~"])
def test_changed_input_files_in_the_home_folder_are_noticed(here, monkeypatch, path):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home/notes.txt").write_text("a")
    assert "write" in go(f"path={path}").made
    assert go(f"path={path}").made == []
    (here / "home/notes.txt").write_text("abc")
    assert "write" in go(f"path={path}").made


def test_code_counts_but_its_comments_do_not(tmp_path):
    def version(text: str, name: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        sys.path.insert(0, str(tmp_path))
        try:
            return keys.code_version(__import__(name).f)
        finally:
            sys.path.pop(0)

    first = version("def f():\n    return 1\n", "version_a")
    assert version('"""Doc."""\n# why\ndef f():\n    """Says one."""\n    return 1\n', "version_b") != version(
        "def f():\n    return 2\n", "version_c"
    )
    assert version("# why\ndef f():\n\n    return 1  # one\n", "version_d") == first


def test_docstrings_do_not_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, doc in (("doc_a", "One."), ("doc_b", "Two.")):
        (tmp_path / f"{name}.py").write_text(f'"""{doc}"""\n\n\ndef f():\n    """{doc}"""\n    return 1\n')
    assert keys.code_version(__import__("doc_a").f) == keys.code_version(__import__("doc_b").f)


def test_how_work_is_done_does_not_count():
    choice = recipes.read({"stage": [{"do": "collect"}]}).stages[0].choice
    plain = {"processes": 1, "engine": "local", "parts": 8}
    key = keys.stage_key(choice, plain, 0, False, [])
    assert keys.stage_key(choice, plain | {"processes": 2, "engine": "ray"}, 0, False, []) == key
    assert keys.stage_key(choice, plain | {"parts": 9}, 0, False, []) != key
    assert keys.stage_key(choice, plain, 1, False, []) != key
    assert keys.stage_key(choice, plain, 0, True, []) != key
    assert keys.stage_key(choice, plain, 0, False, ["a"]) != key


def test_inputs_by_name_kind_folder_and_list(here):
    stages = [
        {"do": "run_toys.write", "name": "a", "words": 1},
        {"do": "run_toys.write", "name": "b", "words": 2},
        {"do": "run_toys.pair", "name": "nearest"},
        {"do": "run_toys.pair", "name": "named", "inputs": {"left": "a"}},
        {"do": "run_toys.pair", "name": "kinds", "inputs": {"text": "a"}},
        {"do": "run_toys.pair", "name": "folders", "inputs": {"left": "other", "right": "other/write"}},
        {"do": "run_toys.gather"},
    ]
    runner.run(recipes.read({"name": "o", "stage": [{"do": "run_toys.write", "words": 7}]}), Path("other"))
    made = go(recipe={"name": "r", "stage": stages}).artifacts
    said = {name: (artifact.folder / "pair").read_text() for name, artifact in made.items() if (artifact.folder / "pair").exists()}
    assert said == {"nearest": "2 2", "named": "1 2", "kinds": "1 1", "folders": "7 7"}
    assert (made["gather"].folder / "kinds").read_text() == "text text count count count count"


def test_an_optional_input_may_be_absent(here):
    recipe = {"name": "r", "stage": [{"do": "run_toys.gather"}]}
    assert (go(recipe=recipe).artifacts["gather"].folder / "kinds").read_text() == ""


def test_only_what_a_stage_rests_on(here):
    recipe = {"name": "r", "stage": [{"do": "run_toys.write"}, {"do": "run_toys.fault"}, {"do": "run_toys.count", "inputs": {"text": "write"}}]}
    assert list(go(recipe=recipe, last="count").artifacts) == ["write", "count"]


def test_a_stopped_stage_goes_on(here, monkeypatch):
    calls, before = [], signal.getsignal(signal.SIGINT)  # ignored where the shell put the tests in the background

    class Stops(observe.Watch):
        def progress(self, stage, done, total, unit, figures):
            calls.append(done)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        go("steps=5", watch=Stops())
    (left,) = Path("out").glob(".count.*.partial")
    assert (left / "done").read_text() == "2"
    assert not Path("out/count").exists()
    result = go("steps=5", watch=Stops())
    assert calls == [1, 2, 3, 4, 5]
    assert result.made == ["count"]
    assert not list(Path("out").glob(".*.partial"))
    assert signal.getsignal(signal.SIGINT) is before


def test_other_options_begin_anew_and_sweep_up(here):
    class Stops(observe.Watch):
        def progress(self, stage, done, total, unit, figures):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        go("steps=5", watch=Stops())
    assert (go("steps=4").artifacts["count"].folder / "done").read_text() == "4"
    assert not list(Path("out").glob(".*.partial"))


def test_the_old_artifact_stands_until_the_new_one_is_whole(here):
    go()

    class Stops(observe.Watch):
        def progress(self, stage, done, total, unit, figures):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        go("steps=5", watch=Stops())
    assert Path("out/count/done").read_text() == "3"
    assert go().made == []


def test_a_stage_sealed_but_not_moved_is_not_done_again(here, monkeypatch):
    from bessemer.core import files

    real = files.replace_folder

    def killed(made, place):
        if place.name == "count":
            raise KeyboardInterrupt
        real(made, place)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            go()
    seen = []

    class Sees(observe.Watch):
        def progress(self, stage, done, total, unit, figures):
            seen.append(done)

    go(watch=Sees())
    assert seen == []
    assert Path("out/count/done").read_text() == "3"


def test_a_smoke_run_has_its_own_folder_and_keys(here):
    assert folder.default("a", True) != folder.default("a", False)
    go()
    with pytest.raises(BessemerError, match="belongs to the run"):
        go(smoke=True)


def test_runs_may_share_artifacts(here):
    first = go(store=Path("store"))
    other = runner.run(recipes.read(TWO, ["steps=4"]), Path("out2"), store=Path("store"))
    assert first.made == ["write", "count"]
    assert other.made == ["count"]
    assert len(list(Path("store").iterdir())) == 3


def test_one_run_at_a_time_in_one_process_too(here):
    inside = []

    class Second(observe.Watch):
        def begin(self, stage):
            if not inside:
                inside.append(1)
                with pytest.raises(BessemerError, match=f"process {os.getpid()}"):
                    go()

    go(watch=Second())
    assert inside
    assert go().made == []


def test_a_run_outside_the_main_thread(here):
    made = []
    thread = threading.Thread(target=lambda: made.append(go().made))
    thread.start()
    thread.join()
    assert made == [["write", "count"]]


def test_the_folder_says_how_to_run_again(here):
    go("words=5")
    again = recipes.read("out/recipe.toml")
    assert runner.run(again, Path("out")).made == []


def test_manifests_hold_energy_and_versions(here):
    manifest = go().artifacts["write"].manifest
    assert manifest["info"]["energy"]["joules"] >= 0
    assert "torch" in manifest["made_by"]
    assert manifest["recipe"]["words"] == 3


SLOW = '[[stage]]\ndo = "slow.slow"\n'
SLOW_CODE = """
from __future__ import annotations
import time
from bessemer.core.artifact import Artifact
from bessemer.core.work import Work
class Thing(Artifact):
    kind = "thing"
def slow(work: Work) -> Thing:
    for n in range(600):
        (work.out / "n").write_text(str(n))
        work.progress(n, 600, "naps")
        time.sleep(0.05)
"""


@pytest.mark.parametrize(("signals", "status"), [([signal.SIGINT], 130), ([signal.SIGTERM], 130), ([signal.SIGKILL], -9)])
def test_signals_to_the_command(here, signals, status):
    (here / "r.toml").write_text(SLOW)
    (here / "slow.py").write_text(SLOW_CODE)
    command = [sys.executable, "-m", "bessemer", "run", "r.toml", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(here.glob("runs/r/.slow.*.partial/n")):
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in err
    if status == 130:
        assert "same command" in err
        assert json.loads(out)["status"] == 130
    (here / "slow.py").write_text(SLOW_CODE)
    (left,) = here.glob("runs/r/.slow.*.partial")
    assert (left / "n").exists()


def test_the_second_ctrl_c_stops_at_once(here):
    (here / "r.toml").write_text(SLOW)
    (here / "slow.py").write_text(SLOW_CODE.replace("    for n", "    work.stopping\n    for n"))
    process = subprocess.Popen([sys.executable, "-m", "bessemer", "run", "r.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(here.glob("runs/r/.slow.*.partial/n")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "once more" not in process.stderr.readline():
        continue
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.wait(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - start < 5
