"""Saving beside training: what is on disk is the state of the step that was saved, and training is let go at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bessemer.core.errors import ArtifactError, BessemerError
from bessemer.train import checkpoint_bytes, checkpoint_storage
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import Checkpoint, checkpoints, latest, superseded, sweep

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def random_state() -> dict[str, torch.Tensor]:
    state = {f"model.{kind}": torch.randn(7, 3, 5).mul(9).to(kind) for kind in KINDS}
    state["model.number"] = torch.tensor(2.5)
    state["model.empty"] = torch.empty(0, 4)
    state["model.transposed"] = torch.randn(6, 8).t()
    state["model.nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    return state


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit, NaN and the sign of zero included."""
    x, y = (value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(x, y)


@pytest.mark.parametrize("stage", [True, False])
def test_round_trip_is_bitwise(tmp_path: Path, stage: bool) -> None:
    state = random_state()
    saver = Checkpointer(tmp_path, stage=stage)
    saver.save(7, state, {"words": ["ä", None, 1.5]})
    saver.wait()
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 7
    assert found.plain == {"words": ["ä", None, 1.5]}
    loaded = {name: torch.full_like(value, 1) for name, value in state.items()}
    found.load(loaded)
    read = found.read()
    assert read.keys() == state.keys()
    for name, value in state.items():
        assert same(loaded[name], value), name
        assert same(read[name], value), name


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    state = random_state()
    saver = Checkpointer(tmp_path)
    saver.save(1, state, {})
    saver.wait()
    found = load_file(tmp_path / "step-00000001" / "rank-00000.safetensors")
    assert all(same(found[name], value) for name, value in state.items())
    assert not list(tmp_path.rglob(".metadata"))


@pytest.mark.parametrize("size", [0, 1, checkpoint_bytes.PAGE, checkpoint_bytes.BLOCK, checkpoint_bytes.BLOCK + checkpoint_bytes.PAGE + 3])
def test_any_size_is_written_whole(tmp_path: Path, size: int) -> None:
    data = torch.arange(size).to(torch.uint8).numpy()
    apart = [data[: size // 3], data[size // 3 :]]
    aligned = checkpoint_bytes.pages(size)
    aligned[:] = data
    sums = [checkpoint_bytes.write_file(tmp_path / str(i), parts) for i, parts in enumerate([[data], apart, [aligned]])]
    assert len(set(sums)) == 1
    assert all((tmp_path / str(i)).read_bytes() == data.tobytes() for i in range(3))


@pytest.mark.parametrize("stage", [True, False])
def test_what_changes_after_before_update_is_not_saved(tmp_path: Path, stage: bool) -> None:
    weight = torch.zeros(1 << 20)
    saver = Checkpointer(tmp_path, stage=stage, keep_last=9)
    for step in range(5):
        saver.save(step, {"weight": weight}, {})
        saver.before_update()
        weight += 1
    saver.wait()
    for path in checkpoints(tmp_path):
        found = Checkpoint.open(path)
        assert found.read()["weight"].eq(found.step).all()


def test_save_returns_at_once_and_before_update_waits_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, copied = checkpoint_bytes.Staging.copy, threading.Event()

    def slow(self, header, tensors):
        time.sleep(0.3)
        copied.set()
        return copy(self, header, tensors)

    monkeypatch.setattr(checkpoint_bytes.Staging, "copy", slow)
    saver = Checkpointer(tmp_path)
    saver.save(1, {"weight": torch.ones(4)}, {})
    assert not copied.is_set()
    saver.before_update()
    assert copied.is_set()
    assert saver.blocked > 0.1
    saver.wait()


def test_before_update_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, go = checkpoint_storage.write_file, threading.Event()
    monkeypatch.setattr(checkpoint_storage, "write_file", lambda path, parts: go.wait(10) and write(path, parts))
    saver = Checkpointer(tmp_path)
    saver.save(1, {"weight": torch.ones(4)}, {})
    saver.before_update()
    assert not checkpoints(tmp_path)
    go.set()
    saver.wait()
    assert checkpoints(tmp_path)


def test_a_save_that_is_due_too_early_waits_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint_storage.write_file
    monkeypatch.setattr(checkpoint_storage, "write_file", lambda path, parts: time.sleep(0.3) or write(path, parts))
    notes: list[str] = []
    saver = Checkpointer(tmp_path, note=notes.append)
    for step in (1, 2):
        saver.save(step, {"weight": torch.ones(4)}, {})
    saver.wait()
    assert len(checkpoints(tmp_path)) == 2
    assert len(notes) == 1
    assert "step 2 waited" in notes[0]


def test_an_error_in_the_background_is_raised_once_and_the_next_save_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Checkpointer(tmp_path)
    saver.save(1, {"weight": torch.ones(4)}, {})
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_storage, "write_file", lambda path, parts: (_ for _ in ()).throw(OSError(5, "Input/output error", str(path))))
        saver.save(2, {"weight": torch.ones(4)}, {})
        with pytest.raises(BessemerError, match="could not be written"):
            saver.wait()
    saver.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    saver.save(2, {"weight": torch.ones(4)}, {})
    saver.wait()
    assert len(checkpoints(tmp_path)) == 2


def test_a_failed_save_is_raised_by_the_next_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_bytes.Staging, "copy", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    saver = Checkpointer(tmp_path)
    saver.save(1, {"weight": torch.ones(4)}, {})
    assert saver._now is not None
    assert saver._now.thread is not None
    saver._now.thread.join()
    with pytest.raises(BessemerError, match="could not be written"):
        saver.before_update()


@pytest.mark.parametrize(
    ("tensors", "plain", "says"),
    [
        ({"a": 3}, {}, "is a int"),
        ({"a": torch.eye(3).to_sparse()}, {}, "layout"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, {}, "complex128"),
        ({}, {"a": torch.ones(1)}, "must be JSON"),
        ({}, {"a": {1, 2}}, "must be JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_once(tmp_path: Path, tensors, plain, says: str) -> None:
    saver = Checkpointer(tmp_path)
    with pytest.raises(BessemerError, match=says):
        saver.save(1, tensors, plain)
    saver.before_update()
    saver.wait()
    assert not list(tmp_path.iterdir())


def test_plain_values_may_change_after_save(tmp_path: Path) -> None:
    plain = {"history": [1]}
    saver = Checkpointer(tmp_path)
    saver.save(1, {}, plain)
    plain["history"].append(2)
    saver.wait()
    found = latest(tmp_path)
    assert found is not None
    assert found.plain == {"history": [1]}


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    for value in (1.0, 2.0):
        saver.save(5, {"weight": torch.full((3,), value)}, {})
    saver.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert Checkpoint.open(tmp_path / "step-00000005").read()["weight"].eq(2).all()


def test_policy_keeps_last_every_and_best(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep_last=2, keep_every=4, keep_best=1)
    losses = {1: 5.0, 2: 4.0, 3: 1.0, 4: 3.0, 5: 3.0, 6: None, 7: float("nan"), 8: 2.0, 9: 3.0, 10: 4.0}
    for step, loss in losses.items():
        saver.save(step, {"weight": torch.ones(2)}, {}, metric=loss)
    saver.wait()
    assert [Checkpoint.open(p).step for p in checkpoints(tmp_path)] == [3, 4, 8, 9, 10]


def test_policy_alone() -> None:
    saved = {1: 0.1, 2: 0.9, 3: 0.9, 4: None, 5: 0.2}
    assert superseded(saved, last=1, every=0, best=0, better="lower") == [1, 2, 3, 4]
    assert superseded(saved, last=1, every=0, best=1, better="higher") == [1, 3, 4]
    assert superseded(saved, last=1, every=0, best=1, better="lower") == [2, 3, 4]
    assert superseded(saved, last=5, every=0, best=0, better="lower") == []
    assert superseded({}, last=2, every=3, best=1, better="lower") == []


def test_going_back_discards_what_came_later(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, keep_last=9)
    for step in (1, 2, 3):
        saver.save(step, {}, {})
    saver.discard_after(1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_sweep_removes_leftovers_and_finishes_an_interrupted_replacement(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path)
    for step in (1, 2):
        saver.save(step, {"weight": torch.ones(2)}, {})
    saver.wait()
    (tmp_path / "step-00000002").rename(tmp_path / ".step-00000002.replaced")
    for name in (".step-00000003.part", ".step-00000001.gone", ".step-00000001.replaced"):
        (tmp_path / name).mkdir()
    (tmp_path / ".mine.part").mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.part", "step-00000001", "step-00000002"]
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    saver = Checkpointer(tmp_path, identity={"tokens": "a", "tokenizer": "b"})
    saver.save(1, {}, {})
    saver.wait()
    assert latest(tmp_path, identity={"tokens": "a", "tokenizer": "b"}) is not None
    with pytest.raises(ArtifactError, match="another run: its tokens differs"):
        latest(tmp_path, identity={"tokens": "other", "tokenizer": "b"})


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "notes.txt").touch()
    assert latest(tmp_path) is None
