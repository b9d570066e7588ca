"""Killed, torn, altered, full, foreign: a checkpoint that opens is one that was saved, and everything else says what is wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from bessemer.core.artifact import MANIFEST, seal
from bessemer.core.errors import ArtifactError, BessemerError
from bessemer.train import checkpoint_bytes
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import Checkpoint, checkpoints, latest
from bessemer.train.checkpoint_storage import INDEX

KILLS = 20


def state(step: int) -> dict[str, torch.Tensor]:
    return {f"part{i}": torch.arange(1 << 17, dtype=torch.float32) * 3 + step + i for i in range(6)}


def save_for_ever(folder: Path, log: Path) -> None:
    """Saves every step twice, so that kills fall into replacements as well, and writes down which saves it saw finished."""
    saver = Checkpointer(folder)
    found = latest(folder)
    step = found.step if found else 0
    with open(log, "a", buffering=1) as file:
        while True:
            step += 1
            for _ in range(2):
                saver.save(step, state(step), {"step": step})
                saver.before_update()
                saver.wait()
                file.write(f"{step}\n")


def kill_repeatedly(folder: Path) -> None:
    """Forks a saver and kills it at a random moment, over and over; this process has torch loaded, so a fork costs nothing."""
    torch.set_num_threads(1)
    moments = random.Random(0)
    for attempt in range(KILLS):
        child = os.fork()
        if child == 0:
            save_for_ever(folder / "saved", folder / "log")
        time.sleep(moments.uniform(0.01, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shutil.copytree(folder / "saved", folder / f"after-{attempt}", symlinks=True)
        log = folder / "log"
        shutil.copy(log, folder / f"log-{attempt}") if log.exists() else (folder / f"log-{attempt}").touch()


def kill_at_every_call(folder: Path) -> None:
    """Kills a process that replaces one checkpoint, saves another and lets a third go, before each of its calls to the file system."""
    torch.set_num_threads(1)
    start = folder / "start"
    child = os.fork()
    if child == 0:
        save_three_ways(start, 0)
        os._exit(0)
    os.waitpid(child, 0)
    for call in range(1, 1000):
        place = folder / f"call-{call:03d}"
        shutil.copytree(start, place)
        child = os.fork()
        if child == 0:
            save_three_ways(place, call)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


def save_three_ways(folder: Path, fatal: int) -> None:
    """With `fatal` 0 makes checkpoints 1 and 2; else goes on from there, and dies before the fatal-th call."""
    if fatal == 0:
        saver = Checkpointer(folder)
        for step in (1, 2):
            saver.save(step, state(step), {"value": step})
        return saver.wait()
    calls = 0

    def deadly(work):
        def called(*args, **options):
            nonlocal calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **options)

        return called

    for name in ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "chmod"):
        setattr(os, name, deadly(getattr(os, name)))
    saver = Checkpointer(folder)
    saver.save(2, state(20), {"value": 20})
    saver.save(3, state(3), {"value": 3})
    return saver.wait()


def test_killed_before_any_call_the_newest_is_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, "calls", str(tmp_path)], check=True, timeout=120)
    values = []
    for folder in sorted(tmp_path.glob("call-*")):
        Checkpointer(folder)  # sweeps
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        found = latest(folder, note=pytest.fail)
        assert found is not None
        value = found.plain["value"]
        assert found.step == {2: 2, 20: 2, 3: 3}[value]
        loaded = found.read()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in state(value).items())
        assert len(checkpoints(folder)) >= 2
        values.append(value)
    assert len(values) > 30
    assert list(dict.fromkeys(values)) == [2, 20, 3], "old, then new, and nothing between"


def test_killed_at_any_moment_the_newest_is_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, "moments", str(tmp_path)], check=True, timeout=120)
    steps, leftovers = [], 0
    for attempt in range(KILLS):
        folder = tmp_path / f"after-{attempt}"
        acknowledged = [int(line) for line in (tmp_path / f"log-{attempt}").read_text().split()]
        leftovers += any(path.name.startswith(".step") for path in folder.iterdir())
        Checkpointer(folder)  # sweeps
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        found = latest(folder, note=pytest.fail)
        if found is None:
            assert not acknowledged
            continue
        assert found.step >= max(acknowledged, default=0)
        assert found.plain == {"step": found.step}
        loaded = found.read()
        assert all(torch.equal(value, loaded[name]) for name, value in state(found.step).items())
        steps.append(found.step)
    assert leftovers > KILLS // 4, "the kills fell beside the saves, so this test showed nothing"
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saver = Checkpointer(tmp_path / "saved")
    for step in (1, 2):
        saver.save(step, state(step), {"step": step})
    saver.wait()
    return tmp_path / "saved"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def reseal(place: Path, change) -> None:
    """What a hand that knows the format could make: an altered index under a manifest that fits it."""
    index = json.loads((place / INDEX).read_text())
    change(index)
    (place / INDEX).write_text(json.dumps(index))
    seal(place, "checkpoint", recipe=None, parents={}, info={"step": 2, "metric": None})


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


RANK = "rank-00000.safetensors"
DAMAGE = {
    "truncated": (lambda p: os.truncate(p / RANK, 1000), "1000 bytes where its manifest says"),
    "emptied": (lambda p: os.truncate(p / RANK, 0), "0 bytes where its manifest says"),
    "a bit flipped": (lambda p: flip(p / RANK, 2_000_000), "checksum differs"),
    "last bit flipped": (lambda p: flip(p / RANK, -1), "checksum differs"),
    "lengthened": (lambda p: os.truncate(p / RANK, 9_000_000), "bytes where its manifest says"),
    "tensors missing": (lambda p: (p / RANK).unlink(), "the file is missing"),
    "index missing": (lambda p: (p / INDEX).unlink(), "the file is missing"),
    "state missing": (lambda p: (p / "state.json").unlink(), "the file is missing"),
    "state altered": (lambda p: (p / "state.json").write_text('{"step": 9}\n'), "checksum differs"),
    "index altered": (lambda p: flip(p / INDEX, 30), "checksum differs"),
    "manifest torn": (lambda p: os.truncate(p / MANIFEST, 200), "is not whole JSON"),
    "manifest empty": (lambda p: os.truncate(p / MANIFEST, 0), "is not whole JSON"),
    "manifest binary": (lambda p: (p / MANIFEST).write_bytes(b"\x80\xff\x00"), "can't be read"),
    "manifest missing": (lambda p: (p / MANIFEST).unlink(), "has no manifest.json"),
    "another kind": (lambda p: edit(p / MANIFEST, kind="tokens"), "holds tokens where a checkpoint is wanted"),
    "another format": (lambda p: edit(p / MANIFEST, format=99), "is of format 99"),
    "a list for a manifest": (lambda p: (p / MANIFEST).write_text("[]"), "is not a bessemer manifest"),
    "no tensors in the index": (lambda p: reseal(p, dict.clear), "is not the index of a checkpoint"),
    "a list for tensors": (lambda p: reseal(p, lambda i: i.update(tensors=[1])), "is not the index of a checkpoint"),
    "an unknown type": (lambda p: reseal(p, lambda i: i["tensors"]["part0"].update(dtype="F4")), "part0: has the type 'F4'"),
    "no chunks": (lambda p: reseal(p, lambda i: i["tensors"]["part0"].update(chunks=[])), "in 0 chunks"),
    "a file outside": (lambda p: reseal(p, lambda i: i["tensors"]["part0"]["chunks"][0].update(file="../../secret")), "manifest doesn't list"),
    "past the end": (lambda p: reseal(p, lambda i: i["tensors"]["part0"]["chunks"][0].update(begin=1 << 30)), "points outside"),
    "before the start": (lambda p: reseal(p, lambda i: i["tensors"]["part0"]["chunks"][0].update(begin=-8)), "points outside"),
    "outside its tensor": (lambda p: reseal(p, lambda i: i["tensors"]["part0"].update(shape=[5])), "points outside"),
    "a word for an offset": (lambda p: reseal(p, lambda i: i["tensors"]["part0"]["chunks"][0].update(offsets=["x"])), "is not the index"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_when_opened_and_passed_over_when_resuming(folder: Path, damage: str) -> None:
    harm, says = DAMAGE[damage]
    harm(folder / "step-00000002")
    with pytest.raises(ArtifactError, match=says) as caught:
        Checkpoint.open(folder / "step-00000002")
    assert "step-00000002" in str(caught.value.file)
    notes: list[str] = []
    found = latest(folder, note=notes.append)
    assert found is not None
    assert found.step == 1
    assert len(notes) == 1
    assert "step-00000002 is damaged" in notes[0]


def test_when_every_one_is_damaged_it_does_not_begin_again_in_silence(folder: Path) -> None:
    for path in checkpoints(folder):
        os.truncate(path / RANK, 100)
    with pytest.raises(ArtifactError, match="step-00000002"):
        latest(folder)


def test_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    torchs = tmp_path / "torchs"
    torch.distributed.checkpoint.save({"a": torch.ones(2)}, checkpoint_id=torchs, no_dist=True)
    with pytest.raises(ArtifactError, match="is a pickle"):
        Checkpoint.open(torchs)
    with pytest.raises(ArtifactError, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no such folder"):
        Checkpoint.open(folder / "step-00000001" / RANK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no finished artifact"):
        Checkpoint.open(tmp_path / "empty")


def test_what_is_not_in_it_is_named(folder: Path) -> None:
    found = Checkpoint.open(folder / "step-00000002")
    with pytest.raises(ArtifactError, match=r"part9: the checkpoint holds no such tensor.*\n.*did you mean"):
        found.load({"part9": torch.ones(1 << 17)})
    with pytest.raises(ArtifactError, match="part0: is 131072 in the checkpoint and 2 x 3 here"):
        found.load({"part0": torch.ones(2, 3)})


def assert_untouched(folder: Path, error: BessemerError, says: str) -> None:
    assert says in str(error)
    assert sorted(os.listdir(folder)) == ["step-00000001", "step-00000002"]
    found = latest(folder, note=pytest.fail)
    assert found is not None
    assert found.step == 2


def test_too_little_space_is_seen_before_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint_bytes.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    saver = Checkpointer(folder)
    saver.save(3, state(3), {})
    with pytest.raises(BessemerError) as caught:
        saver.wait()
    assert_untouched(folder, caught.value, "the checkpoint needs 3.1 MB and 0.0 MB are free")


@pytest.mark.parametrize("allowed", [0, 5000, 1 << 20])
def test_a_write_that_fails_midway_leaves_nothing(folder: Path, allowed: int) -> None:
    saver = Checkpointer(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limits[1]))
    try:
        saver.save(3, state(3), {})
        with pytest.raises(BessemerError) as caught:
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(folder, caught.value, os.strerror(errno.EFBIG))


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "bessemer-test", str(place)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_disk / "saved"
    saver = Checkpointer(folder, keep_last=3)
    for step in (1, 2):
        saver.save(step, state(step), {})
    saver.wait()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoint_bytes.shutil, "disk_usage", lambda path: usage(0, 0, 1 << 40))  # a disk that fills while we write
    saver.save(3, state(3), {})
    with pytest.raises(BessemerError) as caught:
        saver.wait()
    assert_untouched(folder, caught.value, "the disk is full")
    (small_disk / "saved" / "step-00000001").rename(small_disk / "gone")
    shutil.rmtree(small_disk / "gone")
    saver.save(3, state(3), {})
    saver.wait()
    assert [Checkpoint.open(path).step for path in checkpoints(folder)] == [2, 3]


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BessemerError, match="can't be written"):
        Checkpointer(tmp_path / "file" / "checkpoints")


if __name__ == "__main__":
    {"moments": kill_repeatedly, "calls": kill_at_every_call}[sys.argv[1]](Path(sys.argv[2]))
