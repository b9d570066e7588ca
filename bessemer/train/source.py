"""Where steps get their micro-batches: every task's loader, read on from where the task stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.data.fold import folded
from bessemer.data.prefetch import Prefetch


def _as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class Feed:
    """One task's supply of rows.

    Attributes:
        loader: gives batches by the task's own row numbers.
        share: of each global batch's rows, relative to the other tasks that are on.
        unit: rows that must stay together; a step gets whole units.
        start, stop: the span of training, as fractions of it, in which the task is on.
        prepare: what the objective does to a batch, on the data side.
        fold: whether rows are cut where no document crosses the cuts (data/fold.py).
    """

    loader: Any
    share: float = 1.0
    unit: int = 1
    start: float = 0.0
    stop: float = 1.0
    prepare: Callable[[Batch], Batch] = _as_it_is
    fold: bool = False

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """A prepared batch of the loader's."""
        made = self.prepare(self.loader.batch(start, rows, rank=rank, ranks=ranks))
        return folded(made) if self.fold else made

    def on(self, progress: Progress) -> bool:
        return self.start <= progress.fraction and (progress.fraction < self.stop or self.stop >= 1.0)


class Source:
    """Cuts the rows of a step into micro-batches, task by task; the next ones are made in the background.

    Each task reads its own rows in their order. Which task the rows of a step go to follows from what each is owed: its share
    of all rows since it was switched on, less what it got. So any window holds each task's share to a unit, whatever the sizes
    of steps. What each got and is owed is the state, beside what the loaders themselves remember.

    Args:
        feeds: task name -> its supply.
        micro_batch: the most rows of one micro-batch; a task whose unit is larger gets micro-batches of one unit.
        rank, ranks: which block of every micro-batch this process reads.
        join: makes one micro-batch of several tasks' rows; None: each micro-batch is of one task.
    """

    def __init__(
        self, feeds: Mapping[str, Feed], micro_batch: int, rank: int = 0, ranks: int = 1, join: Callable[[list[Batch]], Batch] | None = None
    ) -> None:
        self.feeds, self.micro_batch, self.rank, self.ranks, self.join = dict(feeds), micro_batch, rank, ranks, join
        self.ready = {task: Prefetch(feed) for task, feed in self.feeds.items()}
        self.taken = dict.fromkeys(self.feeds, 0)
        self.owed = dict.fromkeys(self.feeds, 0.0)

    def next(self, progress: Progress, rows: int) -> list[Batch]:
        """The micro-batches of the next `rows` rows; some fewer where they don't divide into whole units."""
        allotted = self._allot(progress, rows)
        if self.join is not None:
            return self._joined(allotted, max(1, -(-rows // self.micro_batch)), self.join)
        batches: list[Batch] = []
        for task, count in allotted.items():
            first, unit = self.taken[task], self.feeds[task].unit
            size = max(unit, self.micro_batch // unit * unit)
            for at in range(first, first + count, size):
                wanted = min(size, first + count - at)
                batches.append(self.ready[task].batch(at, wanted, rank=self.rank, ranks=self.ranks))
            self.taken[task] += count
        return batches

    def _joined(self, allotted: dict[str, int], parts: int, join: Callable[[list[Batch]], Batch]) -> list[Batch]:
        """Micro-batches that each hold their part of every task's rows, in whole units."""
        batches = []
        for number in range(parts):
            members = []
            for task, count in allotted.items():
                unit = self.feeds[task].unit
                start, stop = (count // unit * edge // parts * unit for edge in (number, number + 1))
                if stop > start:
                    members.append(self.ready[task].batch(self.taken[task] + start, stop - start, rank=self.rank, ranks=self.ranks))
            if members:
                batches.append(join(members))
        for task, count in allotted.items():
            self.taken[task] += count
        return batches

    def follow(self, progress: Progress, measure: Callable[[str], Mapping[str, float]]) -> list[str]:
        """Lets loaders whose order depends on the run look at where it stands, before the next step.

        Args:
            measure: a task's held-out nats per token by group, under the model as it is.

        Returns:
            the tasks whose coming rows are others than before.
        """
        changed = []
        for task, feed in self.feeds.items():
            look = getattr(feed.loader, "follow", None)
            if look is not None and feed.on(progress):
                act = partial(look, progress, self.taken[task], partial(measure, task))
                changed += [task] if self.ready[task].change(act) else []
        return changed

    def state(self) -> dict[str, Any]:
        """What each task got and is owed, and what the loaders remember, as JSON can hold it."""
        loaders = {task: feed.loader.state() for task, feed in self.feeds.items() if hasattr(feed.loader, "state")}
        return {"taken": dict(self.taken), "owed": dict(self.owed), "loaders": loaders}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.taken.update({task: int(count) for task, count in state["taken"].items()})
        self.owed.update({task: float(rows) for task, rows in state["owed"].items()})
        for task, held in state["loaders"].items():
            self.feeds[task].loader.restore(held)

    def close(self) -> None:
        for loader in self.ready.values():
            loader.close()

    def _allot(self, progress: Progress, rows: int) -> dict[str, int]:
        """How many of `rows` rows each task gets: whole units, to whom most is owed first."""
        on = [task for task, feed in self.feeds.items() if feed.on(progress)]
        whole = sum(self.feeds[task].share for task in on)
        given = dict.fromkeys(on, 0)
        for task in on:
            self.owed[task] += rows * self.feeds[task].share / whole
        left = rows
        while True:
            fitting = [task for task in on if self.feeds[task].unit <= left]
            if not fitting:
                break
            task = max(fitting, key=lambda t: (self.owed[t] - given[t]) / self.feeds[t].unit)
            given[task] += self.feeds[task].unit
            left -= self.feeds[task].unit
        for task in on:
            self.owed[task] -= given[task]
        return {task: count for task, count in given.items() if count}
