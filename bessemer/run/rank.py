"""The processes of a run on one machine: one imports everything, then forks the ranks; each rank does the stage and tells the launcher.

Started by run/launch.py as `python -m bessemer.run.rank FD,FD,... FOLDER`, the order as JSON on stdin. Messages are JSON lines of a
socket for each rank. From the launcher: "stop" asks a rank to stop where it can be continued, "where" what its last collectives
were. A rank whose launcher is gone ends at once.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main() -> None:
    """Forks the ranks and reports how each of them ended, a JSON line each."""
    handles, folder = [int(text) for text in sys.argv[1].split(",")], Path(sys.argv[2])
    order = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher hears it, and asks the ranks to stop
    _import_everything()
    children = {}
    for rank, handle in enumerate(handles):
        child = os.fork()
        if child == 0:
            for other in handles:
                if other != handle:
                    os.close(other)
            _rank(Connection(handle), rank, len(handles), folder, order)
        children[child] = rank
        print(json.dumps({"rank": rank, "pid": child}), flush=True)
    for handle in handles:
        os.close(handle)
    while children:
        child, status = os.wait()
        print(json.dumps({"rank": children.pop(child), "status": os.waitstatus_to_exitcode(status)}), flush=True)


def _import_everything() -> None:
    """What the ranks need, once for all of them; nothing here may start a thread or touch an accelerator."""
    import tokenizers  # noqa: F401
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.pipelining  # noqa: F401

    import bessemer.models.families.decoder
    import bessemer.run.order
    import bessemer.run.stages.train  # noqa: F401


def _rank(pipe: Connection, rank: int, ranks: int, folder: Path, order: dict[str, Any]) -> None:
    """The life of one rank; ends the process."""
    ear = Ear(pipe)
    try:
        faulthandler.register(signal.SIGUSR1, file=open(folder / f"stack-{rank}", "w"), all_threads=False)  # noqa: SIM115 - held for life
        _divert(rank, folder)
        ear.say(done=_work(ear, rank, ranks, folder, order))
        status = 0
    except BaseException as error:
        ear.say(**_failure(error))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Ear:
    """A rank's line to its launcher."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.stopping = pipe, False
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True, name="ear").start()

    def say(self, **message: Any) -> None:
        """Tells the launcher something."""
        with self._lock:
            self.pipe.send_bytes(json.dumps(message, default=str).encode())

    def _listen(self) -> None:
        try:
            while True:
                word = self.pipe.recv_bytes()
                if word == b"stop":
                    self.stopping = True
                elif word == b"where":
                    self.say(collective=last_collective())
        except (EOFError, OSError):
            os._exit(1)


def _work(ear: Ear, rank: int, ranks: int, folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from bessemer.core import device, mesh
    from bessemer.run.order import follow

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group(
        device.collectives(), store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks, timeout=mesh.TIMEOUT
    )
    callbacks: dict[str, Any] = {"stop_asked": lambda: ear.stopping}
    if rank == 0:
        callbacks["on_progress"] = lambda done, total, unit, figures: ear.say(progress=[done, total, unit, figures])
        callbacks["on_note"] = lambda text: ear.say(note=text)
    info = follow(order, **callbacks)
    dist.barrier()
    mesh.leave()
    return info


def _divert(rank: int, folder: Path) -> None:
    """What ranks but the first print goes into a file, shown only if the run fails."""
    if rank:
        log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)


def _failure(error: BaseException) -> dict[str, Any]:
    from bessemer.core.errors import BessemerError
    from bessemer.core.work import Stopped

    if isinstance(error, Stopped):
        return {"stopped": True}
    found: dict[str, Any] = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(), "collective": last_collective()}
    if isinstance(error, BessemerError):
        found["mistake"] = [type(error).__name__, error.problem, str(error.file) if error.file else None, error.key, error.mend]
    return found


def last_collective() -> str | None:
    """The collective this rank began last, by torch's flight recorder: "all_reduce, its 12th"."""
    try:
        from torch._C import _distributed_c10d

        entries = json.loads(_distributed_c10d._dump_fr_trace_json())["entries"]  # type: ignore[attr-defined]
        last = max(entries, key=lambda entry: entry["record_id"])
    except (ImportError, AttributeError, ValueError, KeyError, RuntimeError):
        return None
    name = last["profiling_name"].rpartition(":")[2]
    return f"{name} (number {last['collective_seq_id'] or last['p2p_seq_id']} of group {last['process_group'][0]})"


if __name__ == "__main__":
    main()
