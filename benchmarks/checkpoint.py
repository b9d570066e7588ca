"""How long a checkpoint of a 600 MB state keeps training waiting: ours against torch's own ways, in the same training loop.

Every trial is the same: save, then two training steps (forward, backward, AdamW), then wait for the writing. `blocked` is the time
spent in calls that save and in joins before the update; `lost` is what the trial's two steps took beyond two like the plain one before
it, so it also counts what the background work takes from training; `behind` is the time until the checkpoint was whole.

    python benchmarks/checkpoint.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from results import finish
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import latest
from bessemer.train.checkpoint_state import restore, state_of

TARGET = 0.03
Trial = dict[str, float]


def build(layers: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.Tensor]:
    """A network whose parameters and AdamW state are 12.6 MB a layer, and a batch that makes a step take about as long as a real one."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(layers)])
    return model, torch.optim.AdamW(model.parameters(), fused=True), torch.randn(512, 1024)


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, before: Callable[[], None], count: int = 2) -> None:
    for _ in range(count):
        model(batch).square().mean().backward()
        before()
        optimizer.step()
        optimizer.zero_grad()


class Ours:
    """bessemer, `stage` as given."""

    def __init__(self, folder: Path, stage: bool) -> None:
        self.checkpointer, self.step = Checkpointer(folder, keep_last=1, stage=stage), 0

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.step += 1
        tensors, plain = state_of(model, [optimizer])
        self.checkpointer.save(self.step, tensors, plain)

    def before_update(self) -> None:
        self.checkpointer.before_update()

    def wait(self) -> None:
        self.checkpointer.wait()


class Torch:
    """torch.distributed.checkpoint: `save`, `async_save` as it comes, or `async_save` with a stager that works beside training."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way = folder, way
        options = StagingOptions(use_pinned_memory=False, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=False)
        self.stager = DefaultStager(options) if way == "stager" else None
        self.staged: Any = None
        self.written: Any = None

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        tensors, _ = state_of(model, [optimizer])
        if self.way == "save":
            dcp.save(tensors, checkpoint_id=self.folder)
        elif self.way == "async":
            self.written = dcp.async_save(tensors, checkpoint_id=self.folder)
        else:
            answer: Any = dcp.async_save(tensors, checkpoint_id=self.folder, async_stager=self.stager)
            self.staged, self.written = answer.staging_completion, answer.upload_completion

    def before_update(self) -> None:
        if self.staged is not None:
            self.staged.result()
            self.staged = None

    def wait(self) -> None:
        if self.written is not None:
            self.written.result()


def trial(way: Any, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> Trial:
    blocked = 0.0

    def before() -> None:
        nonlocal blocked
        start = time.perf_counter()
        way.before_update()
        blocked += time.perf_counter() - start

    os.sync()  # nobody pays for what another left to the disk
    start = time.perf_counter()
    steps(model, optimizer, batch, lambda: None, count=1)
    begun = time.perf_counter()
    plain = begun - start
    way.save(model, optimizer)
    called = blocked = time.perf_counter() - begun
    steps(model, optimizer, batch, before)
    trained = time.perf_counter() - begun
    way.wait()
    return {"blocked": blocked, "call": called, "plain": plain, "lost": trained - 2 * plain, "behind": time.perf_counter() - begun}


def measure(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    model, optimizer, batch = build(layers)
    steps(model, optimizer, batch, lambda: None)
    ways: dict[str, Any] = {
        "ours": Ours(folder / "ours", stage=True),
        "ours, no copy": Ours(folder / "direct", stage=False),
        "torch save": Torch(folder / "save", "save"),
        "torch async_save": Torch(folder / "async", "async"),
        "torch async_save, stager": Torch(folder / "stager", "stager"),
    }
    first = {name: trial(way, model, optimizer, batch)["blocked"] for name, way in ways.items()}
    found: dict[str, list[Trial]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(trial(way, model, optimizer, batch))
    figures = {name: {key: statistics.median(t[key] for t in trials) for key in trials[0]} for name, trials in found.items()}
    for name, row in figures.items():
        row["first"] = first[name]
        row["worst"] = max(t["blocked"] for t in found[name])
    tensors, _ = state_of(model, [optimizer])
    start = time.perf_counter()
    checkpoint = latest(folder / "ours")
    assert checkpoint is not None
    verified = time.perf_counter() - start
    restore(checkpoint, model, [optimizer])
    loaded = time.perf_counter() - start - verified
    start = time.perf_counter()
    dcp.load(tensors, checkpoint_id=folder / "save")
    theirs = time.perf_counter() - start
    megabytes = sum(t.nbytes for t in tensors.values()) / 1e6
    step = statistics.median(t["plain"] for trials in found.values() for t in trials)
    return {"ways": figures, "step": step, "megabytes": megabytes, "verify": verified, "load": loaded, "torch load": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 150 MB state, three rounds")
    parser.add_argument("--rounds", type=int, default=0)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=0, world_size=1)  # async_save asks for a group
        figures = measure(Path(place), 12 if chosen.quick else 48, chosen.rounds or (3 if chosen.quick else 5))
        dist.destroy_process_group()
    print(f"state {figures['megabytes']:.0f} MB, plain step {figures['step']:.2f} s; seconds, medians")
    print(f"{'':26}{'blocked':>9}{'worst':>9}{'call':>9}{'lost':>9}{'behind':>9}{'first':>9}")
    for name, row in figures["ways"].items():
        print(f"{name:26}" + "".join(f"{row[key]:9.3f}" for key in ("blocked", "worst", "call", "lost", "behind", "first")))
    print(f"verify {figures['verify']:.2f} s, load {figures['load']:.2f} s; torch load (nothing verified) {figures['torch load']:.2f} s")
    finish("checkpoint", figures, {"blocked": TARGET}, figures["ways"]["ours"]["blocked"] <= TARGET, chosen.quick)


if __name__ == "__main__":
    main()
