"""Gradients summed over ranks bucket by bucket, while the backward pass still works on those of earlier layers (Li et al. 2020, "PyTorch distributed").

A bucket is one flat tensor of neighbouring parameters' gradients, the last layers' first. It travels as soon as the backward pass of the
step's last micro-batch has finished all of it and every bucket before it has left, so all ranks send the same in the same order. Gradients
become views of the bucket as it leaves: they are not held twice, and what comes back is not copied.

Ranks of one machine write their buckets into memory they have in common, and each adds them up, in the order of the ranks, before it writes the
next but one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core import shards
from bessemer.core.hooks import when_accumulated
from bessemer.core.shared_memory import Rooms, possible

SIZE = 8 * 2**20
"""Bytes of a bucket's gradients, from which on no other is added."""
BEHIND = 2
"""How many buckets may be in common memory."""


class Buckets:
    """The gradients that are to be summed over one group.

    A parameter without a gradient (of a task that had no micro-batch) is left out, on all ranks alike.

    Args:
        parameters: in the order of the forward pass.
        group: the ranks.
        size: bytes of a bucket.
        in_memory: whether to use memory in common, where there is some.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], group: Any, size: int = SIZE, in_memory: bool = False) -> None:
        self.group, self.waits = group, False
        # when a rank writes its bucket of turn n it has waited for n - 2, which the others sent after they had read n - 4
        self.rooms = Rooms(group, apart=2 * BEHIND) if in_memory and possible(group) else None
        self.buckets = _divide(list(parameters)[::-1], size)
        self.number = {id(p): number for number, bucket in enumerate(self.buckets) for p in bucket}
        self.missing: list[set[int]] = []
        self.hooked: set[int] = set()
        self.sent = 0
        self.pending: deque[Callable[[], None]] = deque()

    def expect(self) -> None:
        """The next backward pass is the last of the step: what it finishes may travel."""
        self.waits, self.missing = True, []
        for bucket in self.buckets:
            trained = [p for p in bucket if p.requires_grad]
            self.missing.append({id(p) for p in trained})
            for parameter in trained:
                if id(parameter) not in self.hooked:
                    when_accumulated(parameter, self._finished)
                    self.hooked.add(id(parameter))

    def finish(self) -> None:
        """Sends what has not been sent, waits for all of it, and leaves each parameter the sum."""
        self.waits = False
        while self.sent < len(self.buckets):
            self._send()
        self._settle(0)
        self.sent = 0

    def _settle(self, left: int) -> None:
        """Waits for all but so many of what was sent, and leaves the parameters their sums."""
        while len(self.pending) > left:
            self.pending.popleft()()

    def _finished(self, parameter: Tensor) -> None:
        if not self.waits:
            return
        self.missing[self.number[id(parameter)]].discard(id(parameter))
        while self.sent < len(self.buckets) and not self.missing[self.sent]:
            self._send()

    def _send(self) -> None:
        parameters = [p for p in self.buckets[self.sent] if p.grad is not None]
        self.sent += 1
        if not parameters:
            return
        pieces = [shards.local(p.grad).reshape(-1) for p in parameters if p.grad is not None]
        room = None
        if self.rooms is not None:
            self._settle(BEHIND - 1)
            room = self.rooms.next(sum(len(piece) for piece in pieces), pieces[0].dtype)
        self.pending.append(self._over_network(parameters, pieces) if room is None else self._in_memory(parameters, pieces, room))

    def _over_network(self, parameters: list[nn.Parameter], pieces: list[Tensor]) -> Callable[[], None]:
        flat = torch.cat(pieces)
        copies, work = _laid(parameters, flat), dist.all_reduce(flat, group=self.group, async_op=True)

        def summed() -> None:
            work.wait()
            for piece, total in copies:
                piece.copy_(total)

        return summed

    def _in_memory(self, parameters: list[nn.Parameter], pieces: list[Tensor], room: Tensor) -> Callable[[], None]:
        torch.cat(pieces, out=room[self.group.rank()])
        written = dist.barrier(self.group, async_op=True)

        def summed() -> None:
            written.wait()
            for piece, total in _laid(parameters, room.sum(0)):
                piece.copy_(total)

        return summed


def _divide(parameters: list[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Neighbours of one type together, up to `size` bytes."""
    found: list[list[nn.Parameter]] = []
    held = 0
    for parameter in parameters:
        if not found or held >= size or found[-1][0].dtype != parameter.dtype:
            found.append([])
            held = 0
        found[-1].append(parameter)
        held += shards.local(parameter).nbytes
    return found


def _laid(parameters: list[nn.Parameter], flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Makes gradients views of the bucket they are in; those that lie on a mesh, or otherwise in memory, can't be: (gradient, its place)."""
    copies, begin = [], 0
    for parameter in parameters:
        gradient: Any = parameter.grad
        piece = shards.local(gradient)
        place = flat[begin : begin + piece.numel()].view_as(piece)
        begin += piece.numel()
        if isinstance(gradient, DTensor) or piece.stride() != place.stride():  # fused updates take a gradient to lie like its parameter
            copies.append((piece, place))
        else:
            parameter.grad = place
    return copies
