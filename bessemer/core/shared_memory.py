"""Memory that the ranks of one machine have in common, through which they hand tensors to each other.

Processors' collectives go through sockets even to a neighbour: the sender copies into the kernel, the receiver out of it, and both wait for
the threads that do it, on the cores that should train. In common memory a rank writes where the others read, and only the word that it has
been written still travels.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.core import device

FOLDER = "/dev/shm"


def possible(group: Any) -> bool:
    """Whether the ranks of a group may have memory in common: they are processes that compute on a processor, and not one alone."""
    return group.size() > 1 and dist.get_backend(group) == "gloo" and not device.is_accelerator()


class Rooms:
    """Pieces of common memory for what the ranks of one group exchange in turns; every rank asks for the same in the same order.

    Args:
        group: the ranks.
        apart: after how many turns a piece may be written again, because by then each rank has read it.
    """

    def __init__(self, group: Any, apart: int) -> None:
        self.group, self.apart = group, apart
        self.rank, self.count = group.rank(), group.size()
        self.turn, self.able = 0, possible(group)
        self.rooms: list[tuple[Tensor, int]] = []

    def next(self, numel: int, dtype: torch.dtype) -> Tensor | None:
        """A piece for this turn: [ranks, numel], of which each rank writes its row; None where the ranks have no memory in common."""
        self.turn += 1
        size = numel * dtype.itemsize
        for number, (room, last) in enumerate(self.rooms):
            if room.shape[1] >= size and last <= self.turn - self.apart:
                self.rooms[number] = (room, self.turn)
                return room[:, :size].view(dtype)
        new = in_common(self.group, -(-size // 64) * 64) if self.able else None
        if new is None:
            self.able = False
            return None
        self.rooms.append((new, self.turn))
        return new[:, :size].view(dtype)


def in_common(group: Any, size: int) -> Tensor | None:
    """New memory of all ranks of a group, uint8 [ranks, size]; None if they run on several machines, or there is too little of it.

    It goes back to the system with the last rank that holds it, however that ends.
    """
    rank, count = group.rank(), group.size()
    place = [_file(count * size) if rank == 0 else ""]
    dist.broadcast_object_list(place, group=group, group_src=0)
    try:
        held = torch.from_file(place[0], shared=True, size=count * size, dtype=torch.uint8) if place[0] and os.path.exists(place[0]) else None
    except RuntimeError:
        held = None
    good = torch.tensor(int(held is not None))
    dist.all_reduce(good, op=dist.ReduceOp.MIN, group=group)
    if rank == 0 and place[0]:
        os.unlink(place[0])
    return held.view(count, size) if held is not None and good else None


def _file(size: int) -> str:
    """A new file in memory with room for so many bytes; "" where there is none."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="bessemer-", dir=FOLDER)
    except OSError:
        return ""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.unlink(name)
        return ""
    finally:
        os.close(descriptor)
    return name
