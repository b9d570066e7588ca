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


class Neighbours:
    """What the sharded modules of one group of ranks have in common, and where the step stands.

    Args:
        group: the ranks that share out parameters.
    """

    def __init__(self, group: Any) -> None:
        self.group, self.inside = group, False
        self.rooms = Rooms(group, apart=2)
        self.gathers: list[Gather] = []

    def attach(self, module: Any) -> None:
        """Has a sharded module's parameters and gradients go through common memory."""
        self.gathers.append(Gather(self))
        module.set_custom_all_gather(self.gathers[-1])
        module.set_custom_reduce_scatter(Scatter(self.rooms))
        module._set_unshard_async_op(True)  # a rank waits for the others' shards when it needs them, not when it asks for them

    def before_micro_batch(self, last: bool) -> None:
        """A micro-batch of a step begins; until its end parameters don't change."""
        self.inside = True

    def settle(self) -> None:
        """The step is over: parameters may change."""
        self.inside = False
        for gather in self.gathers:
            gather.known = False


class Gather:
    """All ranks' shards, which each writes into the common piece before the call.

    Later passes of a step find there what the first has written. A piece is written again with other values only after the parameters have
    changed, and no rank changes them before all have exchanged gradients, which they do after reading.

    Attributes:
        known: whether all ranks are known to have written the parameters of this step.
    """

    def __init__(self, neighbours: Neighbours) -> None:
        self.neighbours, self.group = neighbours, neighbours.group
        self.room: Tensor | None = None
        self.able, self.known = True, False

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
        if self.known:
            return None
        self.known = self.neighbours.inside
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
