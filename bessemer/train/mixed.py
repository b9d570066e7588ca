"""Micro-batches of several tasks at once: joined rows for the trunk's one pass, taken apart again for each task's objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bessemer.core.batch import TOKENS, Batch, Outputs
from bessemer.core.terms import Terms
from bessemer.objectives._objective import Objective

MIXED, MEMBER = "mixed", "member"


class Mixed(Objective):
    """The objectives of several tasks as one: each sees its own rows, and its terms are named TASK/TERM.

    Args:
        members: task name -> (objective, the task's weight).
        trunk: streams that the trunk reads, by any prefix: they keep their names; the others are kept apart by task.
    """

    def __init__(self, members: Mapping[str, tuple[Objective, float]], trunk: Sequence[str]) -> None:
        self.members, self.trunk = dict(members), tuple(trunk)

    def join(self, batches: Sequence[Batch]) -> Batch:
        """Batches of different tasks as one, rows below rows; weights and streams that only objectives read are named TASK/NAME.

        Where a task's rows lack a stream they hold zeros, and -1 where the stream is an index: nothing is there.
        """
        opened = any(batch.open is not None for batch in batches)
        order = list(self.members)
        member = torch.cat([torch.full((batch.rows,), order.index(batch.task), device=batch.tokens.device) for batch in batches])
        return Batch(
            tokens=torch.cat([batch.tokens for batch in batches]),
            positions=torch.cat([batch.positions for batch in batches]),
            segments=torch.cat([torch.ones_like(b.tokens) if b.segments is None else b.segments for b in batches]),
            targets=torch.cat([torch.zeros_like(b.tokens) if b.targets is None else b.targets for b in batches]),
            weights=_stacked(batches, [{f"{b.task}/{name}": value for name, value in {TOKENS: _present(b), **b.weights}.items()} for b in batches]),
            streams={**_stacked(batches, [self._named(b) for b in batches]), MEMBER: member},
            samples=torch.cat([torch.full_like(b.tokens[:, 0], -1) if b.samples is None else b.samples for b in batches]),
            sources=torch.cat([torch.zeros_like(b.tokens[:, 0]) if b.sources is None else b.sources for b in batches]),
            task=MIXED,
            open=torch.cat([torch.zeros_like(b.tokens, dtype=torch.bool) if b.open is None else b.open for b in batches]) if opened else None,
        )

    def _named(self, batch: Batch) -> dict[str, Tensor]:
        return {name if name.startswith(self.trunk) else f"{batch.task}/{name}": value for name, value in batch.streams.items()}

    def split(self, batch: Batch) -> list[tuple[Batch, slice]]:
        """Each task's rows as a batch of its own, and which rows they are."""
        members = batch.streams[MEMBER].tolist()
        counts, ends = Counter(members), {number: place + 1 for place, number in enumerate(members)}
        found = []
        for number, task in enumerate(self.members):
            if counts[number]:
                rows = slice(ends[number] - counts[number], ends[number])
                part = batch.rows_of(rows.start, rows.stop)
                streams = {name: value for name, value in part.streams.items() if name.startswith(self.trunk)}
                streams |= {name.removeprefix(f"{task}/"): value for name, value in part.streams.items() if name.startswith(f"{task}/")}
                weights = {name.removeprefix(f"{task}/"): value for name, value in part.weights.items() if name.startswith(f"{task}/")}
                found.append((replace(part, weights=weights, streams=streams, task=task), rows))
        return found

    @property
    def acts_before(self) -> bool:
        return any(each.acts_before for each, _ in self.members.values())

    def before(self, batch: Batch) -> Batch:
        return self.join([self.members[part.task][0].before(part) for part, _ in self.split(batch)])

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        for part, rows in self.split(batch):
            objective, weight = self.members[part.task]
            extras = {name: value[rows] for name, value in outputs.extras.items()}
            mine = Outputs(outputs.hidden[rows], outputs.head, outputs.again, extras=extras)
            for name, term in objective(mine, part):
                terms.add(f"{part.task}/{name}", term.sum, over=f"{part.task}/{term.over}", scale=term.scale * weight)
        return terms


def _present(batch: Batch) -> Tensor:
    """The stream that every batch has without being told: 1 at each token."""
    return torch.ones(batch.tokens.shape, device=batch.tokens.device) if batch.segments is None else (batch.segments > 0).float()


def _stacked(batches: Sequence[Batch], held: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each stream over the rows of all batches; what differs in its second dimension or is missing is filled up."""
    found = {}
    for name in dict.fromkeys(name for each in held for name in each):
        values = [each.get(name) for each in held]
        first = next(value for value in values if value is not None)
        wide = max((value.shape[1] for value in values if value is not None and value.ndim > 1), default=0)
        shape = (wide, *first.shape[2:]) if first.ndim > 1 else ()
        parts = []
        for batch, value in zip(batches, values, strict=True):
            room = torch.full((batch.rows, *shape), -1 if name.endswith("_index") else 0, dtype=first.dtype, device=first.device)
            if value is None:
                parts.append(room)
            else:
                parts.append(torch.cat((value, room[:, value.shape[1] :]), 1) if value.ndim > 1 else value)
        found[name] = torch.cat(parts)
    return found


def trunk_streams(adapters: Sequence[str]) -> tuple[str, ...]:
    """The beginnings of the names of streams that the trunk reads: the adapters' and the vectors objectives make."""
    return ("vectors", *adapters)
