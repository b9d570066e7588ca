"""Starting the ranks of a stage on this machine and watching over them: one place for progress, one error that names its rank, no orphans."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

from bessemer.core import errors
from bessemer.core.registry import Choice
from bessemer.core.work import Stopped, Work
from bessemer.run import order as orders

STILL = float(os.environ.get("BESSEMER_HANG_SECONDS", "20"))
"""Seconds in which no rank uses the processor after which the run counts as hung. A rank that waits for an accelerator or another
rank's computation is not still; ranks that all wait for each other are."""
IDLE = 0.03
"""The share of a core that a rank may use while it is still: gloo's threads look around even then, for 0.3 to 0.8% of one as measured."""
BUSY = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
"""What a process is in that gets no processor time because others have it, or waits for a disk."""
GRACE = 2.0
"""Seconds the other ranks get to tell their end after one has failed."""


class RankFailed(Exception):
    """A rank raised, died of itself or hung. The first line says which and how, the rest is its traceback and where the others stood."""


def stage(choice: Choice, work: Work, given: list[Any]) -> None:
    """Does a stage on as many processes as its mesh has ranks.

    Raises:
        BessemerError: as the stage itself would, and where a rank was killed.
        Stopped: it was asked to stop.
        RankFailed: a rank raised, died of itself or hung; all are gone.
    """
    count = orders.ranks_of(choice)
    with tempfile.TemporaryDirectory(prefix="bessemer-ranks-") as folder, _started(count, Path(folder), orders.write(choice, work, given)) as ranks:
        work.info |= Watch(ranks, work, Path(folder)).until_done()


class Ranks:
    """The processes: the one that forks them, and each rank's line, process and end."""

    def __init__(self, parent: subprocess.Popen[str], pipes: list[Connection]) -> None:
        self.parent, self.pipes = parent, pipes
        self.pids: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        threading.Thread(target=self._read, daemon=True, name="ranks").start()

    def _read(self) -> None:
        for line in self.parent.stdout or ():
            said = json.loads(line)
            if "pid" in said:
                self.pids[said["rank"]] = said["pid"]
            else:
                self.ends[said["rank"]] = said["status"]

    def tell(self, word: bytes) -> None:
        """Sends a word to every rank that still listens."""
        for pipe in self.pipes:
            try:
                pipe.send_bytes(word)
            except OSError:
                continue

    def used(self) -> tuple[float, bool]:
        """Processor seconds that the ranks and their helpers have used so far, and whether one of them wants more right now."""
        total, wanting = 0.0, False
        for process in _tree(self.parent.pid):
            try:
                times = process.cpu_times()
                total += times.user + times.system
                wanting |= process.status() in BUSY
            except psutil.Error:
                continue
        return total, wanting

    def kill(self) -> None:
        """Ends every process at once, ranks whose parent is gone too."""
        for process in [*_tree(self.parent.pid), *(each for rank, pid in self.pids.items() if rank not in self.ends for each in _tree(pid))]:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.parent.wait()


class Watch:
    """Hears what the ranks say, until all are done or one is not."""

    def __init__(self, ranks: Ranks, work: Work, folder: Path) -> None:
        self.ranks, self.work, self.folder = ranks, work, folder
        self.open = dict(enumerate(ranks.pipes))
        self.info: dict[str, Any] = {}
        self.failures: dict[int, dict[str, Any]] = {}
        self.collectives: dict[int, str | None] = {}
        self.stopped = self.told = False
        self.quiet_since, self.used = time.monotonic(), 0.0

    def until_done(self) -> dict[str, Any]:
        """What the stage wants in its manifest."""
        while self.open:
            self._hear(1.0)
            if self.ranks.parent.poll():  # who forked the ranks waits for them and is seen at work in their stead
                for rank in list(self.open):
                    self._lost(rank)
            if self.failures:
                self._hear_others()
                self._end()
            if self.work.stop_asked() and not self.told:
                self.told = True
                self.ranks.tell(b"stop")
            if self._hung():
                self._end(hung=True)
        if self.stopped:
            raise Stopped
        return self.info

    def _hear(self, seconds: float) -> None:
        names: dict[Any, int] = {pipe: rank for rank, pipe in self.open.items()}
        for pipe in wait(list(names), seconds):
            try:
                self._take(names[pipe], json.loads(pipe.recv_bytes()))  # type: ignore[union-attr]
            except (EOFError, OSError):
                self._lost(names[pipe])

    def _hear_others(self) -> None:
        """One rank's end breaks the others' connections: what they tell within a moment shows who was first."""
        until = time.monotonic() + GRACE
        while self.open and time.monotonic() < until:
            self._hear(0.1)

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        if "progress" in message:
            done, total, unit, figures = message["progress"]
            self.work.on_progress(done, total, unit, figures)
        elif "note" in message:
            self.work.note(message["note"])
        elif "failed" in message:
            self.failures[rank] = message
            del self.open[rank]
        elif "done" in message or "stopped" in message:
            self.info = message.get("done", {}) if rank == 0 else self.info
            self.stopped |= "stopped" in message
            del self.open[rank]
        elif "collective" in message:
            self.collectives[rank] = message["collective"]

    def _lost(self, rank: int) -> None:
        """A rank's line broke before it told how it ended."""
        del self.open[rank]
        until = time.monotonic() + GRACE
        while rank not in self.ranks.ends and not self.ranks.parent.poll() and time.monotonic() < until:
            time.sleep(0.02)
        status, who = self.ranks.ends.get(rank), f"rank {rank} of {len(self.ranks.pipes)}"
        if status is None and self.ranks.parent.poll():
            status, who = self.ranks.parent.poll(), "the process that starts the ranks"
        how = f"of signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"with status {status}"
        self.failures[rank] = {"failed": f"died {how}", "traceback": "", "collective": None, "killed": who if status == -signal.SIGKILL else None}

    def _hung(self) -> bool:
        now, (used, wanting) = time.monotonic(), self.ranks.used()
        if wanting or used - self.used > IDLE * len(self.ranks.pipes) * max(now - self.quiet_since, 3.0):
            self.quiet_since, self.used = now, used
        return now - self.quiet_since > STILL

    def _end(self, hung: bool = False) -> None:
        """Asks the others where they stand, ends them all, and raises what went wrong."""
        self.ranks.tell(b"where")
        until = time.monotonic() + GRACE
        while self.open and time.monotonic() < until and not all(rank in self.collectives for rank in self.open):
            self._hear(0.1)
        stacks = {rank: self._stack(rank) for rank in self.open}
        self.ranks.kill()
        self._raise_mistake()
        self._raise_killed()
        raise RankFailed(self._story(stacks, hung))

    def _raise_mistake(self) -> None:
        """Raises what was found wrong with the input, where a rank found something, as one process would have."""
        for rank in sorted(self.failures):
            mistake = self.failures[rank].get("mistake")
            if mistake:
                kind, problem, file, key, mend = mistake
                raise getattr(errors, kind, errors.BessemerError)(problem, file=file, key=key, mend=mend)

    def _raise_killed(self) -> None:
        """Raises that a process was killed, where that came first: no process does so to itself, nor is it a fault in the program."""
        if self.failures:
            _, first = self._first()
            if first.get("killed"):
                often = "a SIGKILL often means that memory ran out (dmesg tells): then make micro_batch smaller, or take fewer ranks on this machine"
                raise errors.TrainingError(f"{first['killed']} was killed (SIGKILL)", mend=f"{often}; the same command goes on where it stopped")

    def _first(self) -> tuple[int, dict[str, Any]]:
        return min(self.failures.items(), key=lambda item: _second(item[1]))

    def _story(self, stacks: dict[int, str], hung: bool) -> str:
        count = len(self.ranks.pipes)
        culprits = {rank: stack for rank, stack in stacks.items() if "torch/distributed" not in stack} if hung else {}
        if hung:
            names = ", ".join(map(str, culprits or stacks))
            head = (
                f"rank {names} of {count} hangs: no rank has used the processor for {STILL:.0f} s; last collective: {self._last(culprits or stacks)}"
            )
        else:
            rank, failure = self._first()
            collective = failure["collective"] or "not known"
            head = f"rank {rank} of {count} failed: {failure['failed'].splitlines()[0]}; its last collective: {collective}"
        lines = [head]
        for rank, failure in sorted(self.failures.items()):
            lines += [f"--- rank {rank}", failure["traceback"] or failure["failed"], self._log(rank)]
        for rank, stack in sorted(stacks.items()):
            lines += [f"--- rank {rank} stood here; last collective: {self.collectives.get(rank) or 'not known'}", stack]
        return "\n".join(line for line in lines if line)

    def _last(self, ranks: dict[int, str]) -> str:
        return ", ".join(f"{self.collectives.get(rank) or 'not known'}" for rank in ranks)

    def _stack(self, rank: int) -> str:
        """The Python stack of a rank, from its own signal handler, which works even where its interpreter is stuck."""
        file = self.folder / f"stack-{rank}"
        try:
            os.kill(self.ranks.pids[rank], signal.SIGUSR1)
            until = time.monotonic() + 1.0
            while not file.stat().st_size and time.monotonic() < until:
                time.sleep(0.02)
            return file.read_text().rstrip()
        except (OSError, KeyError):
            return "(its stack can't be had)"

    def _log(self, rank: int) -> str:
        file = self.folder / f"log-{rank}"
        return file.read_text(errors="replace")[-4000:].rstrip() if file.is_file() else ""


def _second(failure: dict[str, Any]) -> int:
    """How likely a failure is another's consequence: a process that died is none, an error out of a collective mostly is."""
    if not failure["traceback"]:
        return 0
    last = [line for line in failure["traceback"].splitlines() if line.lstrip().startswith("File ")][-1:]
    return 2 if last and "torch/" in last[0] else 1


@contextmanager
def _started(count: int, folder: Path, order: dict[str, Any]) -> Iterator[Ranks]:
    """The processes, which are all gone on leaving."""
    ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
    handles = [end.fileno() for end in theirs]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "TORCH_FR_BUFFER_SIZE": "256",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "bessemer.run.rank", ",".join(map(str, handles)), str(folder)]
    parent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=handles, env=environment, start_new_session=True
    )
    ranks = Ranks(parent, [Connection(end.detach()) for end in ours])
    try:
        for end in theirs:
            end.close()
        assert parent.stdin is not None
        parent.stdin.write(json.dumps(order) + "\n")
        parent.stdin.flush()
        yield ranks
    finally:
        ranks.kill()
        for pipe in ranks.pipes:
            pipe.close()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
