"""The ranks that a launcher of a cluster has started (torchrun, and what starts it: Slurm, Kubernetes): rank 0 leads, the others follow.

Rank 0 runs the recipe as if it were alone. Where a stage wants ranks, it writes the order into the store they all met at, and all
do that stage together; until then the others wait. A rank that fails ends with an error, and torchrun ends the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bessemer.core import mesh
from bessemer.core.registry import Choice
from bessemer.core.work import Work
from bessemer.run import order as orders

LONG = timedelta(days=30)
"""How long a rank waits for an order: the stages before the first that wants ranks may take their time."""
END = b"end"
_given = 0


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this process is one of several, and not the first."""
    return launched() and int(os.environ["RANK"]) > 0


@contextmanager
def leading() -> Iterator[None]:
    """Meets the others, if there are any, and lets them go at the end."""
    if launched():
        mesh.join()
    try:
        yield
    finally:
        if launched():
            _store().set(_key(_given), END)
            mesh.leave()


def lead(choice: Choice, work: Work, given: list[Any]) -> None:
    """Does a stage together with the others."""
    global _given
    _store().set(_key(_given), json.dumps(orders.write(choice, work, given), default=str))
    _given += 1
    choice(work, *given)
    dist.barrier()  # nobody still reads what is now sealed and moved


def follow(stop_asked: Any) -> None:
    """Does the stages that rank 0 orders, until it is done."""
    mesh.join()
    number = 0
    while True:
        _store().wait([_key(number)], LONG)
        order = _store().get(_key(number))
        if order == END:
            break
        orders.follow(json.loads(order), stop_asked=stop_asked)
        dist.barrier()
        number += 1
    mesh.leave()


def _key(number: int) -> str:
    return f"bessemer/order/{number}"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
