"""A guard for updates that can't be held back."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from bessemer.core.progress import Progress
from bessemer.core.ranges import Count, Whole
from bessemer.train.guards.standard import Verdict


class Watch:
    """Goes back to the last checkpoint after several losses in a row that are not finite; holds nothing back (for updates inside the backward pass).

    Args:
        patience: such losses in a row before going back.
        rollbacks: times the run may go back before it gives up.
    """

    holds_back: ClassVar[bool] = False

    def __init__(self, *, patience: Count = 3, rollbacks: Whole = 3) -> None:
        self.patience, self.rollbacks = patience, rollbacks
        self.bad_in_a_row = 0

    def judge(self, progress: Progress, loss: float, norm: float) -> Verdict:
        """Decides about one step from its global loss."""
        self.bad_in_a_row = 0 if math.isfinite(loss) else self.bad_in_a_row + 1
        if self.bad_in_a_row >= self.patience:
            self.bad_in_a_row = 0
            return Verdict("back", f"the loss is not finite ({loss}); {self.patience} in a row")
        return Verdict("step")

    def state(self) -> dict[str, Any]:
        return {"bad_in_a_row": self.bad_in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        self.bad_in_a_row = state["bad_in_a_row"]
