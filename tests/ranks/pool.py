"""Warm processes for tests of several ranks: forked once a session from a process that has imported torch already.

A test names a function that its module defines and the number of ranks; every rank calls it inside a fresh gloo process group:

    def totals(start):                       # runs on each rank; must be importable: at the top of a module
        value = torch.tensor(float(start + dist.get_rank()))
        dist.all_reduce(value)
        return float(value)

    def test_totals(ranks):                  # the fixture of tests/ranks/conftest.py
        assert ranks(totals, 1, count=2) == [3.0, 3.0]

What the ranks return comes back as a list by rank; tensors as tensors. Arguments and results are pickled between these processes.
A rank that raises fails the test with that rank's traceback; ranks that hang are killed after `timeout` seconds, and the error says where
each of them stood. Both cost the pool its processes; the next call forks new ones.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests import folders

RANKS = 8
GRACE = 3.0
"""Seconds the other ranks get to finish after one has failed."""


class RankError(Exception):
    """What went wrong on which rank, with its traceback."""


class Pool:
    """Up to eight ranks of one thread each, started when first needed."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("forkserver")
        self._spawn.set_forkserver_preload(["tests.ranks.preload"])
        self._folder = folders.folder()
        self._workers: list[tuple[Any, Connection]] = []
        self._calls = 0

    def __call__(self, function: Callable[..., Any], *arguments: Any, count: int, timeout: float = 240.0) -> list[Any]:
        """What `function(*arguments)` returns on each of `count` ranks.

        Raises:
            RankError: a rank raised, died or hung.
        """
        self._calls += 1
        self._grow(count)
        workers = self._workers[:count]
        name = f"{function.__module__}:{function.__qualname__}"
        for rank, (_, pipe) in enumerate(workers):
            pipe.send((name, arguments, rank, count, str(self._folder / f"store-{self._calls}")))
        return self._collect(workers, timeout)

    def close(self) -> None:
        """Kills the processes."""
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers = []

    def _grow(self, count: int) -> None:
        while len(self._workers) < count:
            ours, theirs = self._spawn.Pipe()
            process = self._spawn.Process(target=work, args=(theirs, self._stack(len(self._workers))), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def _collect(self, workers: list[tuple[Any, Connection]], timeout: float) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        while len(results) + len(failures) < len(workers) and (left := deadline - time.monotonic()) > 0:
            pending = {pipe: rank for rank, (_, pipe) in enumerate(workers) if rank not in results and rank not in failures}
            for pipe in wait(list(pending), left):
                rank = pending[pipe]  # type: ignore[index]
                try:
                    fine, value = pipe.recv()  # type: ignore[union-attr]
                except (EOFError, ConnectionError):
                    fine, value = False, "the process died"
                if fine:
                    results[rank] = value
                    continue
                if not failures:
                    deadline = min(deadline, time.monotonic() + GRACE)
                failures[rank] = value
        if len(results) == len(workers):
            return [results[rank] for rank in range(len(workers))]
        hung = [rank for rank in range(len(workers)) if rank not in results and rank not in failures]
        text = [f"rank {rank} of {len(workers)}:\n{value}" for rank, value in failures.items()]
        text += [f"rank {rank} of {len(workers)} had not ended; it stood at:\n{self._where(rank)}" for rank in hung]
        self.close()
        raise RankError("\n".join(text))

    def _stack(self, rank: int) -> str:
        return str(self._folder / f"stack-{os.getpid()}-{rank}")

    def _where(self, rank: int) -> str:
        """Asks a hanging process for its Python stack."""
        import signal

        file = Path(self._stack(rank))
        try:
            os.kill(self._workers[rank][0].pid, signal.SIGUSR1)
            time.sleep(0.3)
            return file.read_text()
        except OSError as error:
            return f"(its stack can't be had: {error})"


def work(pipe: Connection, stack: str) -> None:
    """The life of one worker process."""
    import signal

    import torch
    import torch.distributed as dist
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    torch.set_num_threads(1)
    gc.freeze()  # what is imported now stays: no collection need look at it
    faulthandler.register(signal.SIGUSR1, file=open(stack, "w"), all_threads=False)  # noqa: SIM115 - held for life
    while True:
        try:
            name, arguments, rank, count, store = pipe.recv()
        except EOFError:
            return
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        try:
            module, _, symbol = name.partition(":")
            function = getattr(importlib.import_module(module), symbol)
            dist.init_process_group("gloo", store=dist.FileStore(store, count), rank=rank, world_size=count)
            answer = (True, function(*arguments))
            dist.barrier()  # no rank tears its connections down while another still works
            dist.destroy_process_group()
            _clear_sharding_prop_cache()  # it remembers meshes, whose groups' names mean others in the next call
            gc.collect()  # groups in cycles keep their threads, each of which wakes a hundred times a second
        except BaseException:
            answer = (False, traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            return
        if not answer[0]:
            return  # the group is in an unknown state
