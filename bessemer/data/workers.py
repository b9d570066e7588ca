"""Runs a function over the units of a stage: here, in local processes, or on Ray, with the same results in the same order."""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from bessemer.core import files
from bessemer.core.artifact import digest
from bessemer.core.errors import BessemerError, DataError, RecipeError
from bessemer.core.registry import Auto, as_plain

Engine = Literal["local", "ray"]
Function = Callable[..., Any]
Unit = dict[str, Any]


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Where units of work are done. Workers start with the first units and are kept until the pool is left.

    Args:
        engine: "local" runs worker processes on this machine; "ray" a running Ray cluster's (or a local one's) workers,
            which must see the same folders.
        processes: how many at once; "auto" is one per core (locally) or what the cluster has (Ray). 1 means here.
    """

    def __init__(self, engine: Engine = "local", processes: int | Auto = "auto") -> None:
        if processes != "auto" and processes < 1:
            raise RecipeError(f"{processes} processes can do nothing", key="processes", mend='give a number from 1 on, or "auto"')
        self.engine, self.processes = engine, processes
        self._workers: list[subprocess.Popen[bytes]] = []
        self._ray: Any = None

    def run(
        self,
        function: Function,
        units: Sequence[Unit],
        *,
        ledger: Path | None = None,
        stamp: str = "",
        on_done: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Calls `function(**unit)` for every unit and returns the results in the units' order.

        A unit writes its own files, whole or not at all, and returns what JSON can hold. Nothing about how many
        processes there are or where they run reaches it, so neither changes a byte of what it makes.

        Args:
            function: a function at the top of an importable module.
            units: the keyword arguments of each call; they must pickle.
            ledger: a folder that remembers finished units, so an interrupted call continues; delete it once all is done.
            stamp: what the units' inputs were; the ledger holds only for the same stamp.
            on_done: called as each unit ends with (units done so far, its result).

        Raises:
            BessemerError: whatever a unit raised; or a worker died.
        """
        book = _Ledger(ledger, function, units, stamp)
        results = book.known()
        for done, index in enumerate(sorted(results), 1):
            if on_done:
                on_done(done, results[index])
        todo = {index: unit for index, unit in enumerate(units) if index not in results}
        for index, result in self._each(function, todo):
            results[index] = result
            book.write(index, result)
            if on_done:
                on_done(len(results), result)
        return [results[index] for index in range(len(units))]

    def _each(self, function: Function, todo: dict[int, Unit]) -> Iterator[tuple[int, Any]]:
        if not todo:
            return
        if self.engine == "ray":
            self._ray = self._ray or _Ray()
            yield from self._ray.each(function, todo, None if self.processes == "auto" else self.processes)
            return
        at_once = min(cores() if self.processes == "auto" else self.processes, len(todo))
        if at_once <= 1:
            for index, unit in todo.items():
                yield index, function(**unit)
            return
        self._workers += [_start_worker() for _ in range(at_once - len(self._workers))]
        yield from _in_processes(function, todo, self._workers[:at_once])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        if self._ray:
            self._ray.leave()


class _Ledger:
    """Which units are done, one small file each, so that nothing is done twice after a kill."""

    def __init__(self, folder: Path | None, function: Function, units: Sequence[Unit], stamp: str) -> None:
        self.folder = folder
        self.keys = [digest([function.__qualname__, stamp, as_plain(unit)]) for unit in units] if folder else []

    def known(self) -> dict[int, Any]:
        found = {}
        for index, key in enumerate(self.keys):
            try:
                entry = json.loads(self._file(index).read_text())
            except (OSError, ValueError):
                continue
            if entry.get("unit") == key:
                found[index] = entry["result"]
        return found

    def write(self, index: int, result: Any) -> None:
        if self.folder:
            files.write(self._file(index), json.dumps({"unit": self.keys[index], "result": result}))

    def _file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{index:05d}.json"


def _in_processes(function: Function, todo: dict[int, Unit], workers: list[subprocess.Popen[bytes]]) -> Iterator[tuple[int, Any]]:
    """One thread per worker process feeds it units and hands on its results."""
    waiting: queue.SimpleQueue[tuple[int, Unit]] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[int, bool, Any]] = queue.SimpleQueue()
    for item in todo.items():
        waiting.put(item)
    for worker in workers:
        threading.Thread(target=_feed, args=(worker, function, waiting, results), daemon=True).start()
    for _ in todo:
        index, worked, value = results.get()
        if not worked:
            raise value
        yield index, value


def _start_worker() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-m", "bessemer.data.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _feed(worker: subprocess.Popen[bytes], function: Function, waiting: queue.SimpleQueue, results: queue.SimpleQueue) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            index, unit = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            send(worker.stdin, (function.__module__, function.__qualname__, unit))
            results.put((index, *receive(worker.stdout)))
        except (EOFError, OSError, ValueError):  # it is gone, or we are leaving
            problem = f"a data worker ended with code {worker.wait()} while it worked"
            mend = "if it ran out of memory, set processes = 1; give the same command again to continue"
            results.put((index, False, DataError(problem, mend=mend)))
            return
        except Exception as error:
            results.put((index, False, error))
            return


class _Ray:
    """A connection to a Ray cluster: the one already there, that of RAY_ADDRESS, or a local one for as long as it is needed."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            mend = 'pip install "bessemer[ray]", or engine = "local"'
            raise BessemerError('engine = "ray" needs Ray, which is not installed', key="engine", mend=mend) from None
        self.ours = not ray.is_initialized()
        if self.ours:
            environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)

    def each(self, function: Function, todo: dict[int, Unit], processes: int | None) -> Iterator[tuple[int, Any]]:
        import ray

        remote = ray.remote(num_cpus=1, max_retries=2)(call)
        at_once = processes or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = iter(todo.items())
        running: dict[Any, int] = {}
        while True:
            while len(running) < at_once and (item := next(waiting, None)):
                running[remote.remote(function.__module__, function.__qualname__, item[1])] = item[0]
            if not running:
                return
            ready, _ = ray.wait(list(running))
            worked, value = ray.get(ready[0])
            if not worked:
                raise value
            yield running.pop(ready[0]), value

    def leave(self) -> None:
        import ray

        if self.ours:
            ray.shutdown()


def call(module: str, name: str, unit: Unit) -> tuple[bool, Any]:
    """Calls a function by name: (True, its result) or (False, the error as one that can travel)."""
    import importlib
    import traceback

    try:
        return True, getattr(importlib.import_module(module), name)(**unit)
    except BessemerError as error:
        return False, error
    except Exception:
        return False, RuntimeError("a data worker failed:\n" + traceback.format_exc())


def send(pipe: BinaryIO | Any, value: Any) -> None:
    """Writes one value to a pipe between this program's own processes."""
    data = pickle.dumps(value, protocol=5)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def receive(pipe: BinaryIO | Any) -> Any:
    """Reads one value that `send` wrote; EOFError when the other end is gone."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    size = struct.unpack("<Q", head)[0]
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)
