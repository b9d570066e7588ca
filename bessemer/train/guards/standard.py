"""The guard every run has unless it names another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, Positive, Whole


@dataclass(frozen=True)
class Verdict:
    """What to do with a step, and why.

    `step` applies the update; `retry` computes the same micro-batches again; `skip` drops them; `back` returns to the
    last checkpoint and goes on with the data after them.
    """

    action: Literal["step", "retry", "skip", "back"]
    reason: str = ""


class Standard:
    """Retries, then skips, a non-finite step; skips a spike; rolls back when several come together (PaLM; Ling).

    A spike is a gradient norm or loss far above its own recent past: more than `deviations` standard deviations above
    the mean of the logarithm, both exponentially averaged over about `window` steps.

    Args:
        deviations: how far above its past a spike is.
        window: steps over which the past fades.
        retries: how often a non-finite step is computed again, which mends a transient fault of the machine.
        patience: bad steps in a row before going back to the last checkpoint.
        rollbacks: times the run may go back before it gives up.
    """

    holds_back: ClassVar[bool] = True

    def __init__(self, *, deviations: Positive = 8.0, window: Count = 50, retries: Whole = 1, patience: Count = 3, rollbacks: Whole = 3) -> None:
        self.deviations, self.window, self.retries, self.patience, self.rollbacks = deviations, window, retries, patience, rollbacks
        self.past: dict[str, list[float]] = {"loss": [0.0, 0.0, 0.0], "norm": [0.0, 0.0, 0.0]}  # count, mean, variance of the logarithm
        self.bad_in_a_row = 0
        self.tried = 0

    def judge(self, progress: Progress, loss: float, norm: float) -> Verdict:
        """Decides about one step from its global loss and the norm of its whole gradient."""
        reason = self._fault(loss, norm)
        if not reason:
            self.bad_in_a_row = self.tried = 0
            self._remember("loss", loss)
            self._remember("norm", norm)
            return Verdict("step")
        if "not finite" in reason and self.tried < self.retries:
            self.tried += 1
            return Verdict("retry", reason)
        self.tried = 0
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= self.patience:
            self.bad_in_a_row = 0
            return Verdict("back", f"{reason}; {self.patience} bad steps in a row")
        return Verdict("skip", reason)

    def state(self) -> dict[str, Any]:
        return {"past": self.past, "bad_in_a_row": self.bad_in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        self.past, self.bad_in_a_row = {name: list(value) for name, value in state["past"].items()}, state["bad_in_a_row"]

    def _fault(self, loss: float, norm: float) -> str:
        for name, value in (("loss", loss), ("norm", norm)):
            if not math.isfinite(value):
                return f"the {_LONG[name]} is not finite ({value})"
        for name, value in (("loss", loss), ("norm", norm)):
            count, mean, variance = self.past[name]
            spread = max(math.sqrt(variance), 0.05)
            if count >= self.window and math.log(max(value, 1e-30)) > mean + self.deviations * spread:
                return f"the {_LONG[name]} spiked to {value:.4g}, against {math.exp(mean):.4g} of late"
        return ""

    def _remember(self, name: str, value: float) -> None:
        count, mean, variance = self.past[name]
        rate = max(1.0 / self.window, 1.0 / (count + 1))
        gap = math.log(max(value, 1e-30)) - mean
        self.past[name] = [count + 1, mean + rate * gap, (1 - rate) * (variance + rate * gap * gap)]


_LONG = {"loss": "loss", "norm": "gradient norm"}
