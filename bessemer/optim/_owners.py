"""Whole tensors out of pieces: each tensor of a sharded model is put together by one rank, which hands every rank its piece of the result."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from bessemer.core import shards

ROUND = 1 << 24
"""Numbers of parameters that travel at a time, for each rank: what is put together of them takes memory beside the state."""


Cost = Callable[[Tensor], float]


class Owners:
    """Who works on which parameter, and what travels because of it.

    The ranks of the parameters' mesh share the parameters out by what they cost. Pieces travel to the owner and back in exchanges for as many
    parameters as a round holds, of like size. A rank takes memory for what it owns of a round, several times over: put together, sent, received.

    Args:
        parameters: DTensors of one type on one mesh, the same on every rank; every rank of the mesh makes this together.
        parts: for each, the row counts of the matrices stacked in it, or ().
        cost: what moving a parameter takes, in any unit.
    """

    def __init__(self, parameters: Sequence[DTensor], parts: Sequence[Sequence[int]], cost: Cost) -> None:
        mesh = parameters[0].device_mesh
        ranks = mesh.mesh.flatten().tolist()
        order = sorted(range(len(ranks)), key=lambda n: ranks[n])  # groups count by rank
        places = shards.coordinates(mesh)
        self.parameters, self.parts = list(parameters), list(parts)
        self.group = shards.group(mesh)
        self.places = [places[n] for n in order]
        self.me = sorted(ranks).index(dist.get_rank())
        self.cost, self.owner = cost, owners_of([cost(p) for p in parameters], len(ranks))
        self.number = {id(parameter): n for n, parameter in enumerate(parameters)}
        self.copies = [[axis for axis, placement in enumerate(p.placements) if placement.is_replicate()] for p in parameters]
        self.known: dict[tuple[int, int], list[list[shards.Run]]] = {}

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self.number

    def mine(self, parameter: Tensor) -> bool:
        """Whether this rank works on a parameter."""
        return self.owner[self.number[id(parameter)]] == self.me

    def apply(
        self, parameters: Sequence[Tensor], columns: Sequence[Sequence[Tensor]], change: Callable[[dict[int, list[Tensor]]], dict[int, Tensor]]
    ) -> Iterator[dict[int, Tensor]]:
        """Calls `change` on the owner of each parameter, and yields this rank's pieces of what came out, by place in `parameters`, a round at a time.

        Args:
            parameters: some of them, the same on every rank.
            columns: one or more lists of this rank's pieces, one for each parameter.
            change: place in `parameters` -> whole tensors, one of each column, to place -> result of the same shape; for those owned here.
        """
        places = {self.number[id(p)]: place for place, p in enumerate(parameters)}
        for turn in self._turns(places):
            found = change(self._put_together(turn, places, columns))
            owned = {n: found[places[n]] for n in turn if places[n] in found}
            del found
            returned = self._returned(owned, {n: columns[0][places[n]] for n in turn})
            del owned
            yield {places[n]: piece for n, piece in returned.items()}

    def gather(self, parameters: Sequence[Tensor], columns: Sequence[Sequence[Tensor]]) -> Iterator[dict[int, list[Tensor]]]:
        """What `apply` calls `change` with, where nothing is to travel back."""
        places = {self.number[id(p)]: place for place, p in enumerate(parameters)}
        for turn in self._turns(places):
            yield self._put_together(turn, places, columns)

    def _turns(self, places: dict[int, int]) -> list[list[int]]:
        """The numbers of the parameters that travel at a time."""
        found = rounds([self.parameters[n] for n in places], self.cost, len(self.places))
        return [[self.number[id(p)] for p in members] for members in found]

    def _put_together(self, turn: list[int], places: dict[int, int], columns: Sequence[Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        gathered = [self._gathered({n: column[places[n]] for n in turn}) for column in columns]
        return {places[n]: [each[n] for each in gathered] for n in gathered[0]}

    def _gathered(self, pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """The whole of what is owned here."""
        out: list[list[Tensor]] = [[] for _ in self.places]
        for n, piece in pieces.items():
            if self._gives(n, self.me, self.owner[n]):
                out[self.owner[n]].append(piece.reshape(-1))
        mine = [n for n in pieces if self.owner[n] == self.me]
        given = [[n for n in mine if self._gives(n, source, self.me)] for source in range(len(self.places))]
        shapes = [[self._shape(n, source) for n in given[source]] for source in range(len(self.places))]
        arrived = self._exchange(out, [[math.prod(shape) for shape in row] for row in shapes], next(iter(pieces.values())))
        whole = {n: pieces[n].new_empty(self.parameters[n].shape) for n in mine}
        for source, row in enumerate(given):
            for n, flat, shape in zip(row, arrived[source], shapes[source], strict=True):
                for there, here in shards.blocks(whole[n], flat.view(shape), self._runs(n, source)):
                    there.copy_(here)
        return whole

    def _returned(self, found: dict[int, Tensor], pieces: dict[int, Tensor]) -> dict[int, Tensor]:
        """This rank's pieces of what owners found; `pieces` have their shapes and types."""
        back: list[list[Tensor]] = [[] for _ in self.places]
        for n, whole in found.items():
            for to, row in enumerate(back):
                row.append(self._cut(whole, n, to).reshape(-1).to(pieces[n].dtype))
        owned: list[list[int]] = [[] for _ in self.places]
        for n in pieces:
            owned[self.owner[n]].append(n)
        arrived = self._exchange(back, [[pieces[n].numel() for n in row] for row in owned], next(iter(pieces.values())))
        return {n: flat.view_as(pieces[n]) for source, row in enumerate(owned) for n, flat in zip(row, arrived[source], strict=True)}

    def _cut(self, whole: Tensor, number: int, rank: int) -> Tensor:
        """A rank's piece, as a view where it is one run of each dimension."""
        for dim, found in enumerate(self._runs(number, rank)):
            runs = [whole.narrow(dim, start, size) for start, size, _ in shards.placed(found)]
            whole = runs[0] if len(runs) == 1 else torch.cat(runs, dim) if runs else whole.narrow(dim, 0, 0)
        return whole

    def _gives(self, number: int, source: int, owner: int) -> bool:
        """Whether an owner takes a rank's piece: of several that hold the same, the one nearest to it."""
        return all(self.places[source][axis] == self.places[owner][axis] for axis in self.copies[number])

    def _runs(self, number: int, rank: int) -> list[list[shards.Run]]:
        key = number, rank
        if key not in self.known:
            self.known[key] = shards.runs(self.parameters[number], self.places[rank], self.parts[number])
        return self.known[key]

    def _shape(self, number: int, rank: int) -> list[int]:
        return [shards.length(found) for found in self._runs(number, rank)]

    def _exchange(self, out: list[list[Tensor]], sizes: list[list[int]], like: Tensor) -> list[list[Tensor]]:
        """Sends lists of flat tensors to every rank and returns those received, by rank, cut into `sizes`."""
        sent = [sum(t.numel() for t in row) for row in out]
        taken = [sum(row) for row in sizes]
        send = torch.cat([like.new_empty(0), *(t for row in out for t in row)])
        received = like.new_empty(sum(taken))
        dist.all_to_all_single(received, send, taken, sent, group=self.group)
        return [list(part.split(row)) if row else [] for part, row in zip(received.split(taken), sizes, strict=True)]


def by_mesh(parameters: Sequence[Tensor]) -> list[list[DTensor]]:
    """Those that ranks hold pieces of, by the mesh they lie on and their type."""
    found: dict[object, list[DTensor]] = {}
    for parameter in parameters:
        if isinstance(parameter, DTensor) and shards.pieces(parameter) > 1:
            found.setdefault((parameter.device_mesh, parameter.dtype), []).append(parameter)
    return list(found.values())


def numbers(parameter: Tensor) -> float:
    """The cost of a rule that touches every number."""
    return float(parameter.numel())


def squared(parameter: Tensor) -> float:
    """The cost of a rule that multiplies matrices by matrices of their shorter side; of a vector a number each."""
    return float(parameter.numel() * min(parameter.shape[-2:])) if parameter.ndim > 1 else float(parameter.numel())


def owners_of(costs: Sequence[float], ranks: int) -> list[int]:
    """Which of so many ranks, counted in ascending order, owns each: the dearest first, each to the rank with the least work so far."""
    work = [(0.0, rank) for rank in range(ranks)]
    owner = [0] * len(costs)
    for number in dearest(costs):
        least, rank = heapq.heappop(work)
        owner[number] = rank
        heapq.heappush(work, (least + costs[number], rank))
    return owner


def rounds(parameters: Sequence[Tensor], cost: Cost, ranks: int) -> list[list[Tensor]]:
    """The parameters that travel at a time, the dearest first."""
    found: list[list[Tensor]] = []
    held, most = 0, ROUND * ranks
    for number in dearest([cost(p) for p in parameters]):
        size = parameters[number].numel()
        if not found or held + size > most:
            found.append([])
            held = 0
        found[-1].append(parameters[number])
        held += size
    return found


def dearest(costs: Sequence[float]) -> list[int]:
    """Places in descending order of costs."""
    return sorted(range(len(costs)), key=lambda number: -costs[number])
