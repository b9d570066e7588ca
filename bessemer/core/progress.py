"""Where a run stands: the counters that schedules, hooks and checkpoints read."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Progress:
    """The state of a run as numbers. Schedules are pure functions of it.

    Attributes:
        step: steps attempted so far, the skipped ones included.
        steps: steps the run is to take; 0 if another budget ends it.
        samples: rows consumed from the source: the whole of a loader's state.
        tokens: tokens consumed.
        horizon: tokens the run is to take; 0 if another budget ends it.
        seconds: time spent training so far, over all sittings, without each sitting's first step, which compiles.
        patience: seconds the run may take; 0 if another budget ends it.
        flops: operations of all passes of tokens so far, by the model's own formula: those a method asks for beside a step's own too.
        allowance: operations the run may take; 0 if another budget ends it.
        price: operations of one token, forward and backward.
        skipped: steps the guard did not let through.
        rollbacks: times the guard went back to a checkpoint.
        batch: tokens of a full global batch.
        noise_scale: the gradient noise scale in tokens, 0 while unmeasured.
    """

    step: int = 0
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    horizon: int = 0
    seconds: float = 0.0
    patience: float = 0.0
    flops: float = 0.0
    allowance: float = 0.0
    price: float = 0.0
    skipped: int = 0
    rollbacks: int = 0
    batch: int = 0
    noise_scale: float = 0.0

    @property
    def affordable(self) -> int:
        """Whole steps that the operations allowed pay for, at what one took on average so far; 0 if another budget ends the run.

        So the run ends before a step that would take more than is left.
        """
        each = self.flops / self.step if self.step and self.flops else self.price * self.batch
        return max(1, int(self.allowance / each * (1.0 + 1e-9))) if self.allowance else 0

    @property
    def fraction(self) -> float:
        """How far through its budget the run is, 0 to 1; the budget nearest its end counts."""
        parts = [
            self.step / self.steps if self.steps else 0.0,
            self.tokens / self.horizon if self.horizon else 0.0,
            self.seconds / self.patience if self.patience else 0.0,
            self.step / self.affordable if self.allowance else 0.0,
        ]
        return min(1.0, max(parts))

    @property
    def stride(self) -> float:
        """How much of the budget one step takes, on average so far."""
        if self.step:
            return self.fraction / self.step
        steps = self.steps or self.affordable
        return 1.0 / steps if steps else 0.001  # a guess until there is a step to go by

    @property
    def done(self) -> bool:
        return self.fraction >= 1.0

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)
