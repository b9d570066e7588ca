"""Saving the state of training while training goes on: staged beside the next forward, written behind it, committed whole."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from bessemer.core import files
from bessemer.core.artifact import MANIFEST, seal
from bessemer.core.device import is_accelerator
from bessemer.core.errors import BessemerError
from bessemer.train.checkpoint_folder import PLAIN, checkpoints, remove, superseded, sweep, unwrap
from bessemer.train.checkpoint_pieces import in_pieces
from bessemer.train.checkpoint_storage import DTYPES, Staging, Writer


@dataclass
class _Save:
    """One save under way."""

    step: int
    tensors: dict[str, torch.Tensor]
    plain: str
    metric: float | None
    ready: torch.Event | None
    begun: float = field(default_factory=time.perf_counter)
    started: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    error: BaseException | None = None


class Checkpointer:
    """Saves checkpoints into `folder/step-00001200`, blocking training for next to nothing.

    `save` returns at once. Forward and backward change neither parameters nor optimizer state, so the copy into host memory runs
    beside them, and `before_update`, called right before every optimizer step, waits for what is left of it. Writing, syncing,
    checksums and the final rename follow at low priority. What goes wrong there is raised by the next call of any method; the
    earlier checkpoints stay as they are. If a save is due while the last one is still being written it waits, for a save that is
    skipped on one rank must be skipped on all, and says how long.

    With torch.distributed initialised every rank makes one and calls it at the same steps; each writes its part into the same
    (shared) folder, over a process group of their own, and rank 0 commits.

    Args:
        folder: where the checkpoints go; leftovers of a killed save are swept.
        identity: what the run is made from, name -> hash; `latest` tells another run's checkpoint by it.
        note: gets a line for the person watching.
        keep_last: how many of the newest to keep.
        keep_every: keep also each whose step is a multiple of this; 0 for none.
        keep_best: how many of the best to keep also, by the metric given to `save`.
        better: which metric is better.
        stage: copy the state first, which takes as much host memory as the state; False writes straight from it, and
            `before_update` then waits for the writing.

    Raises:
        BessemerError: the folder can't be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: dict[str, str] | None = None,
        note: Callable[[str], None] = lambda text: None,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
        better: Literal["lower", "higher"] = "lower",
        stage: bool = True,
    ) -> None:
        self.folder, self.identity, self.note = folder, identity or {}, note
        self.policy: dict[str, Any] = {"last": max(keep_last, 1), "every": keep_every, "best": keep_best, "better": better}
        self.blocked = 0.0
        """Seconds this object has kept training waiting."""
        self._staging = Staging() if stage else None
        self._now: _Save | None = None
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        if self._rank == 0:
            with files.disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        if self._group:
            dist.barrier(self._group)  # no rank looks for checkpoints before the folder is in order

    def prepare(self, tensors: dict[str, torch.Tensor]) -> None:
        """Asks for the memory of the first save ahead of it (optional: it spares that save the page faults)."""
        if self._staging:
            self._staging.reserve(sum(_local(t).nbytes for t in tensors.values()))

    def save(self, step: int, tensors: dict[str, torch.Tensor], plain: dict[str, Any], metric: float | None = None) -> None:
        """Begins to save; the tensors must not change until `before_update` has returned.

        Args:
            step: updates done; names the folder, and replaces a checkpoint of the same step.
            tensors: name -> tensor or DTensor.
            plain: JSON values; read before this returns, so they may change at once.
            metric: what `keep_best` goes by.

        Raises:
            BessemerError: the save before this one failed, or there is a value that JSON or a tensor of a type that safetensors can't hold.
        """
        started = time.perf_counter()
        if self._now and not self._done(self._now):
            self.wait()
            if (waited := time.perf_counter() - started) > 0.1:
                self.note(f"saving step {step} waited {waited:.1f} s for the save before it; save less often")
        self._raise()
        _check_types(tensors)
        ready = torch.Event() if is_accelerator() else None
        if ready:
            ready.record()
        self._now = _Save(step, in_pieces(tensors), _as_json(plain), metric, ready)
        self._now.thread = threading.Thread(target=self._run, args=(self._now,), name=f"checkpoint-{step}")
        self._now.thread.start()
        self.blocked += time.perf_counter() - started
        self._now.started.set()

    def before_update(self) -> None:
        """Waits until the last save has copied the state, so that the optimizer may change it; nearly always it has.

        Raises:
            BessemerError: the last save failed.
        """
        if self._now is None:
            return
        started = time.perf_counter()
        self._now.released.wait()
        self.blocked += time.perf_counter() - started
        if self._done(self._now):
            self._raise()

    def wait(self) -> None:
        """Waits until the last save is whole on disk; called before the process ends.

        Raises:
            BessemerError: it failed.
        """
        if self._now and self._now.thread:
            self._now.thread.join()
        self._raise()

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, when training has gone back to `step`; rank 0's call does it."""
        self.wait()
        for path in reversed(checkpoints(self.folder)) if self._rank == 0 else []:
            if _step(path) > step:
                remove(path)

    def _done(self, now: _Save) -> bool:
        return now.thread is None or not now.thread.is_alive()

    def _raise(self) -> None:
        if self._now and self._done(self._now):
            error, self._now = self._now.error, None
            if error:
                raise error

    def _run(self, now: _Save) -> None:
        """The background thread of one save; it idles until `save` is about to return, which a busy thread would delay by its turns at the interpreter."""
        now.started.wait()
        part = self.folder / f".{_name(now.step)}.part"
        try:
            if now.ready:
                now.ready.synchronize()
            with torch.no_grad():
                writer = Writer(part, self._rank, self._staging, now.released.set, lambda sums: self._commit(now, part, sums))
                planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
                save(now.tensors, storage_writer=writer, planner=planner, process_group=self._group, no_dist=self._group is None)
        except BaseException as error:
            now.error = _clear(error, self.folder)
            if self._rank == 0:
                shutil.rmtree(part, ignore_errors=True)
        finally:
            now.released.set()
            now.tensors = {}

    def _commit(self, now: _Save, part: Path, sums: dict[str, str]) -> None:
        """Makes what all ranks have written a checkpoint, then lets go of those the policy doesn't keep; on rank 0."""
        files.write(part / PLAIN, now.plain)
        info = {"step": now.step, "metric": now.metric, "ranks": dist.get_world_size() if self._group else 1}
        seal(part, "checkpoint", recipe=None, parents=self.identity, info=info, seconds=time.perf_counter() - now.begun, sums=sums)
        files.replace_folder(part, self.folder / _name(now.step))
        paths = {_step(path): path for path in checkpoints(self.folder)}
        metrics = {step: _metric(path) if self.policy["best"] else None for step, path in paths.items()}
        for step in superseded(metrics, **self.policy):
            remove(paths[step])


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _metric(path: Path) -> float | None:
    try:
        return files.read_json(path / MANIFEST)["info"]["metric"]
    except (BessemerError, KeyError, TypeError):
        return None


def _as_json(plain: dict[str, Any]) -> str:
    try:
        return json.dumps(plain, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BessemerError(f"a checkpoint's plain values must be JSON: {error}") from None


def _check_types(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise BessemerError(f"is a {type(tensor).__name__}; plain values go beside the tensors", key=name)
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise BessemerError(f"is a {tensor.dtype} tensor of {tensor.layout} layout, which safetensors can't hold", key=name)


def _clear(error: BaseException, folder: Path) -> BaseException:
    """What failed, said so that it can be mended."""
    if isinstance(error, CheckpointException):
        cause = next((failure[0] for failure in error.failures.values()), error)
        return unwrap(error, folder) if not isinstance(cause, OSError) else _clear(cause, folder)
    if isinstance(error, OSError):
        mend = "look at the disk, then give the same command again: it continues from the checkpoint before"
        problem = f"the checkpoint could not be written: {os.strerror(error.errno or 0)}; the earlier ones are untouched"
        return BessemerError(problem, file=error.filename or folder, mend=mend)
    return error
