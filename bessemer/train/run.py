"""A run of training: its parts, put together once, and what the loop asks of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bessemer.core import products
from bessemer.core.artifact import digest
from bessemer.core.batch import Batch
from bessemer.core.errors import TrainingError
from bessemer.core.mesh import ROWS, World
from bessemer.core.progress import Progress
from bessemer.core.registry import Choice
from bessemer.core.work import Work
from bessemer.data.example_store import Examples
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.evaluate.held_out import document_sums
from bessemer.evaluate.subject import Subject, at_rest
from bessemer.parallel.together import change
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import Checkpoint, latest
from bessemer.train.checkpoint_state import restore, state_of
from bessemer.train.engine import Engine, Result
from bessemer.train.guards.standard import Verdict
from bessemer.train.metrics import Metrics
from bessemer.train.optimizers import Optimizers
from bessemer.train.source import Source

MIX_TOKENS = 4000
"""Held-out tokens of each domain that an online mix's losses are measured on."""


@dataclass
class Run:
    """Everything the loop and its hooks work with.

    Attributes:
        global_rows: rows of a full global batch; a `batch` schedule scales it, in whole micro-batches.
        schedules: what is scheduled (`lr`, `batch`) -> its schedule.
        store: the tokens; None where all tasks learn from examples.
        flops_per_token: training FLOPs of one token, by the model's own formula.
        energy: gives the joules so far and whether they were measured.
    """

    work: Work
    model: torch.nn.Module
    engine: Engine
    optimizers: Optimizers
    source: Source
    guard: Any
    checkpoints: Checkpointer
    metrics: Metrics
    store: Tokens | None
    examples: list[Examples]
    tokenizer: Tokenizer
    schedules: dict[str, Choice]
    progress: Progress
    length: int
    global_rows: int
    micro_batch: int
    clip: float | None
    flops_per_token: float
    energy: Callable[[], dict[str, Any]]
    hooks: list[Any] = field(default_factory=list)
    warm: bool = False

    @property
    def peak(self) -> float:
        """Measured matrix FLOP/s of all ranks in the compute type; first asked for after the first step, which needn't wait for it."""
        return products.peak(self.engine.dtype) * self.world.mesh.ranks

    def restore_or_begin(self) -> Progress:
        """Continues from the newest whole checkpoint, if there is one."""
        found = self._latest()
        if found is not None:
            self.source.restore(self._load(found)["source"])
            self.work.note(f"continues from step {self.progress.step}")
        self.metrics.rewind(self.progress.step)
        return self.progress

    def set_schedules(self) -> dict[str, float]:
        """Puts every schedule's value for this step in force and returns them by name."""
        factors = {name: float(choice(self.progress)) for name, choice in self.schedules.items()}
        self.optimizers.set_factor(factors.get("lr", 1.0))
        return factors

    def rows(self, factors: dict[str, float]) -> int:
        """Rows of this step's global batch."""
        wanted = self.global_rows * factors.get("batch", 1.0)
        return max(1, round(wanted / self.micro_batch)) * self.micro_batch

    def after_step(self, result: Result) -> None:
        """Lets every module that changes itself between steps do so; counts are what the model's outputs counted (core/batch.py), over all ranks."""
        change(self.model, self.progress, self.optimizers, result.counts)

    @property
    def world(self) -> World:
        """The ranks that train together."""
        return self.engine.layout.world

    def advance(self, result: Result, *, skipped: bool, seconds: float) -> None:
        self.progress.step += 1
        self.progress.samples += result.rows
        self.progress.tokens += result.tokens
        self.progress.flops += self.engine.spent() * self.flops_per_token
        self.progress.skipped += skipped
        self.progress.seconds += self.world.agree(seconds) if self.warm else 0.0
        self.warm = True

    def roll_back(self, verdict: Verdict, result: Result) -> None:
        """Returns to the newest checkpoint and goes on with the data after these batches."""
        self.advance(result, skipped=True, seconds=0.0)
        past = self.progress
        if past.rollbacks >= self.guard.rollbacks:
            raise TrainingError(
                f"{verdict.reason}, and the run went back {past.rollbacks} times already",
                key="optim.lr",
                mend="lower the learning rate, or look at the samples named in metrics.jsonl",
            )
        self.checkpoints.wait()
        found = self._latest()
        if found is None:
            raise TrainingError(
                f"{verdict.reason}, before there was a checkpoint to go back to",
                key="optim.lr",
                mend="lower the learning rate, or save earlier with hooks.save.every",
            )
        past = replace(past)
        self._load(found)
        self.progress.samples, self.progress.seconds, self.progress.flops = past.samples, past.seconds, past.flops
        self.progress.skipped, self.progress.rollbacks = past.skipped, past.rollbacks + 1
        self.optimizers.zero_grad()
        self.work.note(f"went back to step {self.progress.step}: {verdict.reason}")

    def save(self) -> None:
        """Begins a checkpoint of this very step; training goes on while it is written."""
        start = time.perf_counter()
        tensors, plain = state_of(self.model, self.optimizers.optimizers, self.engine.layout.parts)
        plain = self.engine.layout.merged(plain)
        self.checkpoints.save(
            self.progress.step,
            tensors,
            {**plain, "progress": self.progress.as_dict(), "guard": self.guard.state(), "source": self.source.state(), "engine": self.engine.state()},
        )
        self.metrics.write({"step": self.progress.step, "time": {"saving": time.perf_counter() - start}})

    def log_guard(self, verdict: Verdict, result: Result, batches: list[Batch]) -> None:
        """Writes down what the guard did and the samples that did it: those of the micro-batches whose loss is not finite, else all."""
        suspects = [batch for batch, part in zip(batches, result.parts, strict=True) if part != part or part in (float("inf"), float("-inf"))]
        samples = self.world.joined([int(i) for batch in suspects or batches if batch.samples is not None for i in batch.samples], *ROWS)
        self.metrics.write({"step": self.progress.step + 1, "guard": verdict.action, "reason": verdict.reason, "samples": samples})
        self.work.note(f"step {self.progress.step + 1}: {verdict.action}: {verdict.reason}")

    def evaluate(self, tasks: list[Choice]) -> dict[str, Any]:
        """Runs evaluation tasks on the model as it is and writes down what they say."""
        start, progress = time.perf_counter(), self.progress
        with self.optimizers.averaged(), self._at_rest() as model:
            subject = Subject(model, self.tokenizer, self.store, seed=self.work.seed, smoke=self.work.smoke, examples=self.examples)
            figures = {task.name: task(subject) for task in tasks}
        spent = {"evaluation": time.perf_counter() - start}
        self.metrics.write({"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds, "evaluation": figures, "time": spent})
        return figures

    def follow(self) -> None:
        """Lets mixes that change while the model trains, and cooldowns, see where the run stands; new shares are written down."""
        for task in self.source.follow(self.progress, self.held_out_losses):
            loader = self.source.feeds[task].loader
            line = {"step": self.progress.step + 1, "mix": {task: dict(zip(loader.names, loader.pieces.shares[-1], strict=True))}}
            if hasattr(loader.online, "law_by_name"):
                line["law"] = {task: loader.online.law_by_name()}
            self.metrics.write(line)

    def held_out_losses(self, task: str) -> dict[str, float]:
        """Nats per token of a task's domains, each on its first held-out documents, under the model as it is; every rank gets the same."""
        assert self.store is not None, "only loaders of text ask"
        names, shares = self.source.feeds[task].loader.names, self.source.feeds[task].loader.shares
        found = {}
        with self._at_rest() as model:
            for name in [name for name in names if shares[name]]:
                sums = document_sums(model, self.store, length=self.length, rows=8, domain=name, limit=MIX_TOKENS)
                found[name] = float(sums.bits.sum() / sums.tokens.sum()) * math.log(2)
                self.engine.count(float(sums.tokens.sum()), backward=False)
        return found

    @contextmanager
    def _at_rest(self) -> Iterator[torch.nn.Module]:
        """The model as it is, for measuring: all ranks do so together and get the same."""
        # blocks are compiled for the shapes of training; measuring has others, few of them, and need not wait for a compiler
        with self.engine.layout.at_hand() as model, at_rest(model), self.engine.precision(), torch.compiler.set_stance("force_eager"):
            yield model

    def identity(self) -> str:
        """A name for this run that stays the same when it is continued, and differs for any other recipe or data."""
        return digest([self.work.recipe, self.work.name, self.store.hash if self.store else ""])[:16]

    def learning_rate(self) -> float:
        """What the recipe's learning rate has come to by its schedule; each parameter's own is a fixed multiple of it."""
        return self.optimizers.rate()

    def budget(self) -> tuple[float, float, str]:
        """How much of the budget nearest its end is spent, of how much, in which unit."""
        p = self.progress
        spans = [(p.step, p.steps, "steps"), (p.tokens, p.horizon, "tokens"), (p.seconds, p.patience, "seconds"), (p.flops, p.allowance, "FLOPs")]
        return max((span for span in spans if span[1]), key=lambda span: span[0] / span[1])

    def close(self) -> None:
        for hook in self.hooks:
            hook.close()
        self.source.close()
        self.checkpoints.wait()
        self.metrics.close()

    def _latest(self) -> Checkpoint | None:
        return latest(self.checkpoints.folder, identity=self.checkpoints.identity, note=self.work.note)

    def _load(self, found: Checkpoint) -> dict[str, Any]:
        plain = restore(found, self.model, self.optimizers.optimizers, self.engine.layout.parts)
        for name, value in plain["progress"].items():
            setattr(self.progress, name, value)
        self.guard.restore(plain["guard"])
        self.engine.restore(plain["engine"])
        return plain
