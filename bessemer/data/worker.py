"""A worker process of `data.workers`: takes units from its standard input, gives results on its standard output.

It is started as a program of its own, so the caller's main module is not run again in it, and it ends at once when the
caller is gone, however that came about.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading

from bessemer.data import workers


def main() -> None:
    """Answers calls from the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears Ctrl-C and ends us
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a method prints must not get into the results
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(waiting,), daemon=True).start()
    while True:
        workers.send(pipe, workers.call(*waiting.get()))


def _listen(waiting: queue.SimpleQueue) -> None:
    while True:
        try:
            waiting.put(workers.receive(sys.stdin.buffer))
        except EOFError:
            os._exit(0)  # from this thread, so that a caller's death ends even a worker that is busy


if __name__ == "__main__":
    main()
