"""Whole tensors out of pieces: each tensor of a sharded model is put together by one rank, which hands every rank its piece of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bessemer.core import shards

ROUND = 1 << 24
"""Numbers of parameters that travel at a time, for each rank: what is put together of them takes memory beside the state."""


class Owners:
    """Who works on which parameter, and what travels because of it.

    The ranks of the parameters' mesh share the parameters out by the cost of orthogonalising them. Pieces travel to the owner and back in
    two exchanges for as many parameters as a round holds, of like size; no rank ever holds more than what it owns of these.

    Args:
        parameters: DTensors on one mesh, the same on every rank; every rank of the mesh makes this together.
        parts: for each, the row counts of the matrices stacked in it, or ().
    """

    def __init__(self, parameters: Sequence[DTensor], parts: Sequence[Sequence[int]]) -> None:
        mesh = parameters[0].device_mesh
        ranks = mesh.mesh.flatten().tolist()
        order = sorted(range(len(ranks)), key=lambda n: ranks[n])  # groups count by rank
        places = shards.coordinates(mesh)
        self.group = shards.group(mesh)
        self.places = [places[n] for n in order]
        self.me = sorted(ranks).index(dist.get_rank())
        self.order = _order([_cost(p) for p in parameters])
        self.owner = owners_of(parameters, len(ranks))
        self.number = {id(parameter): n for n, parameter in enumerate(parameters)}
        self.shapes = [tuple(p.shape) for p in parameters]
        self.held = [[shards.place(p, at, cut) for at in self.places] for p, cut in zip(parameters, parts, strict=True)]
        self.copies = [[axis for axis, placement in enumerate(p.placements) if placement.is_replicate()] for p in parameters]

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self.number

    def mine(self, parameter: Tensor) -> bool:
        """Whether this rank works on a parameter."""
        return self.owner[self.number[id(parameter)]] == self.me

    def apply(
        self, parameters: Sequence[Tensor], columns: Sequence[Sequence[Tensor]], change: Callable[[dict[int, list[Tensor]]], dict[int, Tensor]]
    ) -> list[Tensor]:
        """Calls `change` on the owner of each parameter, and returns this rank's pieces of what came out.

        Args:
            parameters: some of them, the same on every rank.
            columns: one or more lists of this rank's pieces, one for each parameter.
            change: place in `parameters` -> whole tensors, one of each column, to place -> result of the same shape; for those owned here.
        """
        places = {self.number[id(p)]: place for place, p in enumerate(parameters)}
        results: dict[int, Tensor] = {}
        for turn in self._rounds(places):
            gathered = [self._gathered({n: column[places[n]] for n in turn}) for column in columns]
            found = change({places[n]: [each[n] for each in gathered] for n in gathered[0]})
            owned = {n: found[places[n]] for n in gathered[0]}
            results |= self._returned(owned, {n: columns[0][places[n]] for n in turn})
        return [results[n] for n in places]

    def _rounds(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """As many of these parameters at a time as a round holds, the largest first."""
        wanted, most = set(numbers), ROUND * len(self.places)
        turn: list[int] = []
        held = 0
        for number in filter(wanted.__contains__, self.order):
            size = torch.Size(self.shapes[number]).numel()
            if turn and held + size > most:
                yield turn
                turn, held = [], 0
            turn.append(number)
            held += size
        if turn:
            yield turn

    def _gathered(self, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """The whole of what is owned here."""
        ranks = range(len(self.places))
        mine = [n for n in pieces if self.owner[n] == self.me]
        out = [[piece.reshape(-1) for n, piece in pieces.items() if self.owner[n] == to and self._gives(n, self.me, to)] for to in ranks]
        given = [[n for n in mine if self._gives(n, source, self.me)] for source in ranks]
        arrived = self._exchange(out, [[self._size(n, source) for n in given[source]] for source in ranks], next(iter(pieces.values())))
        whole = {n: pieces[n].new_empty(self.shapes[n]) for n in mine}
        for source in ranks:
            for n, piece in zip(given[source], arrived[source], strict=True):
                held = self.held[n][source]
                whole[n][shards.grid(held)] = piece.view([len(h) for h in held])
        return whole

    def _returned(self, found: dict[int, Tensor], pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """This rank's pieces of what owners found; `pieces` have their shapes and types."""
        ranks = range(len(self.places))
        mine = [n for n in pieces if self.owner[n] == self.me]
        back = [[found[n][shards.grid(self.held[n][to])].reshape(-1).to(pieces[n].dtype) for n in mine] for to in ranks]
        owned = [[n for n in pieces if self.owner[n] == source] for source in ranks]
        arrived = self._exchange(back, [[pieces[n].numel() for n in owned[source]] for source in ranks], next(iter(pieces.values())))
        return {n: flat.view_as(pieces[n]) for source in ranks for n, flat in zip(owned[source], arrived[source], strict=True)}

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


def by_mesh(parameters: Sequence[Tensor]) -> list[list[DTensor]]:
    """Those that ranks hold pieces of, by the mesh they lie on."""
    found: dict[object, list[DTensor]] = {}
    for parameter in parameters:
        if isinstance(parameter, DTensor) and shards.pieces(parameter) > 1:
            found.setdefault(parameter.device_mesh, []).append(parameter)
    return list(found.values())


def _cost(parameter: Tensor) -> float:
    """In proportion to the operations of one Newton-Schulz iteration; of a vector a number each."""
    if parameter.ndim < 2:
        return float(parameter.numel())
    *many, rows, columns = parameter.shape
    count = 1
    for size in many:
        count *= size
    return float(count * rows * columns * min(rows, columns))


def owners_of(parameters: Sequence[Tensor], ranks: int) -> list[int]:
    """Which of so many ranks, counted in ascending order, owns each: the dearest first, each to the rank with the least work so far."""
    costs = [_cost(parameter) for parameter in parameters]
    work = [0.0] * ranks
    owner = [0] * len(costs)
    for number in _order(costs):
        owner[number] = min(range(ranks), key=lambda rank: work[rank])
        work[owner[number]] += costs[number]
    return owner


def _order(costs: Sequence[float]) -> list[int]:
    return sorted(range(len(costs)), key=lambda number: -costs[number])
