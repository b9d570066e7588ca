"""Where steps get their micro-batches: every task's loader, read as a pure function of how many rows were consumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bessemer.core.batch import Batch
from bessemer.data.prefetch import Prefetch
from bessemer.data.prefetch import Source as Loads


class Source:
    """Cuts the rows of a step into micro-batches, task by task; the next ones are made in the background.

    Args:
        loaders: task name -> its loader.
        shares: task name -> its share of every global batch; they sum to one.
        micro_batch: the most rows of one micro-batch.
    """

    def __init__(self, loaders: Mapping[str, Loads], shares: dict[str, float], micro_batch: int) -> None:
        self.loaders = {task: Prefetch(loader) for task, loader in loaders.items()}
        self.shares, self.micro_batch = shares, micro_batch

    def next(self, start: int, rows: int) -> list[Batch]:
        """The micro-batches of global rows start to start + rows."""
        batches: list[Batch] = []
        for task, (first, last) in self._spans(start, rows).items():
            for at in range(first, last, self.micro_batch):
                batches.append(self.loaders[task].batch(at, min(self.micro_batch, last - at)))
        return batches

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()

    def _spans(self, start: int, rows: int) -> dict[str, tuple[int, int]]:
        """Each task's own rows within global rows [start, start + rows): exact over any window to one row."""
        count = _split(self.shares)
        before, after = count(start), count(start + rows)
        return {task: (before[task], after[task]) for task in self.shares if after[task] > before[task]}


def _split(shares: dict[str, float]) -> Callable[[int], dict[str, int]]:
    """How many of the first n rows belong to each task: a fixed pattern of 840 rows, repeated."""
    period = 840
    counts = dict.fromkeys(shares, 0)
    pattern: list[str] = []
    for n in range(1, period + 1):
        task = max(shares, key=lambda t: shares[t] * n - counts[t])
        counts[task] += 1
        pattern.append(task)

    def count(n: int) -> dict[str, int]:
        whole, rest = divmod(n, period)
        return {task: whole * counts[task] + pattern[:rest].count(task) for task in shares}

    return count
