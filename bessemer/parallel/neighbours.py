"""FSDP2's collectives between ranks of one machine, through memory they have in common (core/shared_memory.py).

Each module's parameters have a piece of their own, in which every rank writes its shard and from which all read; gradients go through pieces
that are used in turns, and each rank adds up its shard of all ranks' gradients in the order of the ranks. Where the ranks turn out to have no
memory in common, everything travels as it would without.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bessemer.core.collectives import join_flat, scatter_flat
from bessemer.core.shared_memory import Rooms, in_common


def attach(module: Any, rooms: Rooms) -> None:
    """Has a sharded module's parameters and gradients go through common memory."""
    module.set_custom_all_gather(Gather(rooms.group))
    module.set_custom_reduce_scatter(Scatter(rooms))


class Gather:
    """All ranks' shards, which each writes into the common piece before the call.

    A piece is written again with other values only after the parameters have changed, and no rank changes them before all have exchanged
    gradients, which they do after reading.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.room: Tensor | None = None
        self.able = True

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The common piece, [ranks x shard]."""
        count = math.prod(size)
        if self.able and (self.room is None or self.room.numel() != count * dtype.itemsize):
            self.room = in_common(self.group, count * dtype.itemsize // self.group.size())
            self.able = self.room is not None
        return torch.empty(size, dtype=dtype, device=device) if self.room is None else self.room.view(-1).view(dtype).view(size)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """input_tensor: [shard], a part of output_tensor: [ranks x shard]."""
        if self.room is None:
            return join_flat(output_tensor, input_tensor, group=group, async_op=async_op)
        return dist.barrier(group, async_op=async_op)


class Scatter:
    """The sum of all ranks' gradients, of which each rank gets its shard."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self.room: Tensor | None = None

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for all gradients in the common piece, [ranks x shard], and at the second call for this rank's shard of the sum."""
        self.room = self.rooms.next(math.prod(size), dtype) if self.room is None else self.room
        if self.room is None or math.prod(size) != self.room.shape[1]:
            return torch.empty(size, dtype=dtype, device=device)
        return self.room[self.rooms.rank].view(size)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """input_tensor: [ranks x shard]; output_tensor: [shard]."""
        room, self.room = self.room, None
        if room is None:
            return scatter_flat(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        dist.barrier(group)
        torch.sum(room.view(self.rooms.count, self.rooms.count, -1)[:, self.rooms.rank], 0, out=output_tensor)
        return None
