"""The loop, and there is only one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bessemer.core.batch import Batch
from bessemer.core.errors import TrainingError
from bessemer.core.progress import Progress
from bessemer.core.work import Stopped
from bessemer.optim._probe import Probe
from bessemer.train.engine import Result
from bessemer.train.guards.standard import Verdict

if TYPE_CHECKING:
    from bessemer.train.run import Run


@dataclass
class Report:
    """What one step did; all that hooks may read.

    Attributes:
        progress: where the run stands after the step.
        result: loss and terms, divided by global counts.
        norm: the gradient's norm before clipping.
        factors: every schedule's value at this step.
        verdict: what the guard said.
        batches: the micro-batches of the step, this rank's rows of them.
        tokens: how many tokens all ranks' hold.
        seconds: what the step took, and `time` what its parts took.
    """

    progress: Progress
    result: Result
    norm: float
    factors: dict[str, float]
    verdict: Verdict
    batches: list[Batch]
    tokens: int
    seconds: float
    time: dict[str, float] = field(default_factory=dict)


def steps(run: Run) -> Iterator[Report]:
    """Yields a report after each step; the caller decides what to do between steps."""
    progress = run.restore_or_begin()
    while not progress.done:
        clock = Clock()
        with clock("data"):
            factors = run.set_schedules()
            run.follow()
            batches = run.source.next(progress, run.rows(factors))
        run.optimizers.begin(progress)
        result, norm, verdict = attempt(run, batches, clock)
        if verdict.action == "back":
            run.roll_back(verdict, result)
            continue
        if verdict.action == "step":
            with clock("saving"):
                run.checkpoints.before_update()
            with clock("update"):
                run.optimizers.step()
                run.after_step(result)
        run.optimizers.zero_grad()
        run.advance(result, skipped=verdict.action == "skip", seconds=clock.total())
        yield Report(progress, result, norm, factors, verdict, batches, result.tokens, clock.total(), clock.parts)


def attempt(run: Run, batches: list[Batch], clock: Clock) -> tuple[Result, float, Verdict]:
    """Forward, backward and the guard's word on it; again while the guard wants a retry."""
    while True:
        with clock("forward_backward"):
            result = run.engine.forward_backward(batches)
        with clock("update"):
            run.optimizers.prepare(Probe(run.engine, batches, run.progress))
            norm = math.hypot(run.engine.clip(run.clip), run.optimizers.released)
        verdict = run.guard.judge(run.progress, result.loss, norm)
        if verdict.action != "step":
            run.log_guard(verdict, result, batches)
        if verdict.action != "retry":
            return result, norm, verdict
        run.optimizers.zero_grad()


def train(run: Run) -> None:
    """Steps until the budget is spent or someone asks to stop; hooks look on."""
    try:
        for report in steps(run):
            for hook in run.hooks:
                if hook.due(report):
                    hook(report)
            if run.world.any(run.work.stopping) and not run.progress.done:
                run.save()
                run.checkpoints.wait()
                raise Stopped
        if run.progress.skipped >= max(1, run.progress.step):
            raise TrainingError(
                f"all {run.progress.step} steps were skipped by the guard",
                key="optim",
                mend="lower the learning rate; see the guard's lines in metrics.jsonl",
            )
    finally:
        run.close()


class Clock:
    """Adds up what the parts of a step take."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        return time.perf_counter() - self.started
