"""Whole matrices out of pieces: each matrix of a sharded model is put together by one rank, which hands every rank its piece of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bessemer.core import shards

_groups: dict[tuple[int, ...], Any] = {}


class Owners:
    """Who works on which matrix, and what travels because of it.

    The ranks of the parameters' mesh share the matrices out by the cost of orthogonalising them. Pieces travel to the owner
    and back in two exchanges for all matrices together; no rank ever holds more than what it owns.

    Args:
        parameters: DTensors on one mesh, the same on every rank; every rank of the mesh makes this together.
        parts: for each, the row counts of the matrices stacked in it, or ().
    """

    def __init__(self, parameters: Sequence[DTensor], parts: Sequence[Sequence[int]]) -> None:
        mesh = parameters[0].device_mesh
        ranks = tuple(mesh.mesh.flatten().tolist())
        if ranks not in _groups:
            _groups[ranks] = dist.new_group(sorted(ranks), use_local_synchronization=True)
        self.group = _groups[ranks]
        order = sorted(range(len(ranks)), key=lambda n: ranks[n])  # groups count by rank
        places = shards.coordinates(mesh)
        self.places = [places[n] for n in order]
        self.me = sorted(ranks).index(dist.get_rank())
        self.owner = _shared_out([_cost(p) for p in parameters], len(ranks))
        self.shapes = [tuple(p.shape) for p in parameters]
        self.held = [[shards.place(p, at, cut) for at in self.places] for p, cut in zip(parameters, parts, strict=True)]
        self.copies = [[axis for axis, placement in enumerate(p.placements) if placement.is_replicate()] for p in parameters]

    def apply(self, pieces: list[Tensor], change: Callable[[dict[int, Tensor]], dict[int, Tensor]]) -> list[Tensor]:
        """Calls `change` on the owner of each matrix, and returns this rank's pieces of what came out.

        Args:
            pieces: this rank's, one for each parameter.
            change: number of the parameter -> whole matrix, to number -> result of the same shape; for the matrices owned here.
        """
        count, ranks = len(pieces), range(len(self.places))
        mine = [n for n in range(count) if self.owner[n] == self.me]
        out = [[pieces[n].reshape(-1) for n in range(count) if self.owner[n] == to and self._gives(n, self.me, to)] for to in ranks]
        sizes = [[self._size(n, source) for n in mine if self._gives(n, source, self.me)] for source in ranks]
        arrived = self._exchange(out, sizes, pieces[0])
        whole = {n: pieces[n].new_empty(self.shapes[n]) for n in mine}
        for source in ranks:
            given = [n for n in mine if self._gives(n, source, self.me)]
            for n, piece in zip(given, arrived[source], strict=True):
                held = self.held[n][source]
                whole[n][shards.grid(held)] = piece.view([len(h) for h in held])
        found = change(whole)
        back = [[found[n][shards.grid(self.held[n][to])].reshape(-1).to(pieces[n].dtype) for n in mine] for to in ranks]
        sizes = [[self._size(n, self.me) for n in range(count) if self.owner[n] == source] for source in ranks]
        returned = self._exchange(back, sizes, pieces[0])
        results: dict[int, Tensor] = {}
        for source in ranks:
            results |= dict(zip([n for n in range(count) if self.owner[n] == source], returned[source], strict=True))
        return [results[n].view_as(pieces[n]) for n in range(count)]

    def _gives(self, number: int, source: int, owner: int) -> bool:
        """Whether an owner takes a rank's piece: of several that hold the same, the one nearest to it."""
        return all(self.places[source][axis] == self.places[owner][axis] for axis in self.copies[number])

    def _size(self, number: int, rank: int) -> int:
        size = 1
        for held in self.held[number][rank]:
            size *= len(held)
        return size

    def _exchange(self, out: list[list[Tensor]], sizes: list[list[int]], like: Tensor) -> list[list[Tensor]]:
        """Sends lists of flat tensors to every rank and returns those received, by rank, cut into `sizes`."""
        sent = [sum(t.numel() for t in row) for row in out]
        taken = [sum(row) for row in sizes]
        send = torch.cat([like.new_empty(0), *(t for row in out for t in row)])
        received = like.new_empty(sum(taken))
        dist.all_to_all_single(received, send, taken, sent, group=self.group)
        return [list(part.split(row)) if row else [] for part, row in zip(received.split(taken), sizes, strict=True)]


def _cost(parameter: Tensor) -> float:
    """In proportion to the operations of one Newton-Schulz iteration."""
    *many, rows, columns = parameter.shape
    count = 1
    for size in many:
        count *= size
    return float(count * rows * columns * min(rows, columns))


def _shared_out(costs: list[float], ranks: int) -> list[int]:
    """The largest first, each to the rank with the least work so far."""
    work = [0.0] * ranks
    owner = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda n: -costs[n]):
        owner[number] = min(range(ranks), key=lambda rank: work[rank])
        work[owner[number]] += costs[number]
    return owner
