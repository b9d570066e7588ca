"""Batches made in the background, so that training never waits for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from bessemer.core.batch import Batch


class Source(Protocol):
    """What gives batches by number: the loader, or anything of its shape."""

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch: ...


class Prefetch:
    """Answers as its source would, having made the next batches ahead in one thread.

    It guesses that the next call asks for as many rows, right after these; a call that asks for something else is
    answered all the same, only not ahead of time. So it adds no state: any jump is allowed.

    Args:
        source: where batches come from.
        depth: how many batches to have ready.
    """

    def __init__(self, source: Source, depth: int = 2) -> None:
        self.source, self.depth = source, depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ready: dict[tuple[int, int, int, int], Future[Batch]] = {}

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """The source's batch; errors it raised ahead of time are raised here, when their batch is asked for."""
        wanted = (start, rows, rank, ranks)
        coming = [(start + ahead * rows, rows, rank, ranks) for ahead in range(1, self.depth + 1)]
        mine = self._ready.pop(wanted, None)
        for stale in [key for key in self._ready if key not in coming]:
            self._ready.pop(stale).cancel()
        for key in coming:
            if key not in self._ready:
                self._ready[key] = self._pool.submit(self._make, key)
        return mine.result() if mine is not None else self._make(wanted)

    def _make(self, key: tuple[int, int, int, int]) -> Batch:
        start, rows, rank, ranks = key
        return self.source.batch(start, rows, rank=rank, ranks=ranks)

    def change(self, act: Callable[[], bool]) -> bool:
        """Lets the source change what it answers; if it says it did, what was made ahead is dropped.

        Args:
            act: changes the source, in one assignment that a batch being made sees or doesn't; returns whether it did.
        """
        changed = act()
        if changed:
            self._ready.clear()
        return changed

    def close(self) -> None:
        """Ends the thread, dropping what is not asked for yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ready.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
