"""The engine: micro-batches in, one gradient out. It alone knows of accumulation, reduction and number formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bessemer.core import device
from bessemer.core.batch import Batch, Outputs
from bessemer.core.mesh import AXES, ROWS, TOKENS, World
from bessemer.core.terms import Terms
from bessemer.objectives._objective import Objective
from bessemer.parallel.layout import Layout

FORWARD = 1.0 / 3.0
"""A forward pass's share of the products of a forward and a backward one."""


@dataclass
class Result:
    """What one forward and backward pass over a global batch found.

    Attributes:
        loss: the weighted sum of every task's terms, each divided by its global count.
        terms: each term by name (`task/term` when there are several tasks), divided by its global count.
        rows, tokens: of the global batch.
        parts: per micro-batch, its share of the loss: where a non-finite value came from.
        counts: what the model's outputs counted (how many tokens each expert got), summed.
    """

    loss: float
    terms: dict[str, float]
    rows: int
    tokens: int
    parts: list[float] = field(default_factory=list)
    counts: dict[str, Tensor] = field(default_factory=dict)


class Engine:
    """Runs a model over the micro-batches of one step.

    The sum of every term over all micro-batches is divided by its count over the whole global batch, which is known
    from the batches' weights before the first forward pass. So the gradient doesn't depend on how the rows were cut, over
    micro-batches or over ranks. Every rank calls each method with its own rows of the same micro-batches; all get the same figures.

    Args:
        model: Batch -> Outputs.
        objectives: task name -> (objective, the task's weight).
        dtype: what matrix products are computed in; parameters stay in their own type.
        layout: how the model lies on its ranks; None: it is one process's.
    """

    def __init__(
        self, model: torch.nn.Module, objectives: dict[str, tuple[Objective, float]], dtype: torch.dtype, layout: Layout | None = None
    ) -> None:
        self.model, self.objectives, self.dtype = model, objectives, dtype
        self.layout = layout or Layout(World(), model)
        self._passed = 0.0
        self.parameters = [p for p in model.parameters() if p.requires_grad and not p.is_meta]

    def forward_backward(self, batches: Sequence[Batch]) -> Result:
        """Accumulates the gradient of the global batch into the parameters' `.grad`."""
        totals = self._totals(batches)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        parts: dict[int, Tensor] = {}

        def value(number: int, batch: Batch, outputs: Outputs, last: bool = True) -> Tensor:
            """One micro-batch's share of the loss, noted on the way; before the last stage of a pipeline it is only what the model adds."""
            objective, weight = self.objectives[batch.task]
            terms = objective(outputs, outputs.batch or batch) if last else Terms()
            terms.terms |= outputs.terms.terms
            for name, count in outputs.counts.items():
                counts[name] = counts[name] + count if name in counts else count
            loss = torch.zeros((), device=outputs.hidden.device)
            for name, term in terms:
                total = totals[batch.task, term.over]
                if total == 0.0:
                    continue
                share = term.sum / total
                key = name if len(self.objectives) == 1 else f"{batch.task}/{name}"
                sums[key] = sums.get(key, 0.0) + share.detach().double()
                if term.scale:
                    loss = loss + share * (term.scale * weight)
            parts[number] = parts[number] + loss.detach() if number in parts else loss.detach()
            if not (loss.requires_grad or self.layout.world.alone):
                loss = outputs.hidden.sum() * 0.0  # ranks meet in the backward pass, even where nothing counts
            return loss

        if self.layout.stages is None:
            self._one_by_one(batches, value)
        else:
            even = [self._prepared(batch) for batch in self.layout.stages.even(batches)]
            with self.precision():
                (self.layout.stages.step if self._differentiates() else self.layout.stages.look)(even, value)
        self.layout.after_micro_batches()
        shares, terms = self._reduced([parts[number] for number in sorted(parts)], sums)
        counts = self._counted(counts)
        self.count(totals["", "tokens"], backward=self._differentiates())
        return Result(sum(shares), terms, int(totals["", "rows"]), int(totals["", "tokens"]), shares[: len(batches)], counts)

    def _differentiates(self) -> bool:
        """Whether passes now go backward too; the parameters of other stages say so here as well."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.model.parameters())

    def count(self, tokens: float, *, backward: bool) -> None:
        """Notes a pass of so many tokens, all ranks' together: forward, and backward too or not."""
        self._passed += tokens * (1.0 if backward else FORWARD)

    def spent(self) -> float:
        """Tokens that went forward and backward since this was asked last, whoever asked for it; where they went forward alone, a third of them."""
        found, self._passed = self._passed, 0.0
        return found

    def _one_by_one(self, batches: Sequence[Batch], value: Callable[[int, Batch, Outputs], Tensor]) -> None:
        """Each micro-batch forward and backward, in turn."""
        for number, batch in enumerate(batches):
            self.layout.before_micro_batch(last=number == len(batches) - 1)
            batch = self._prepared(batch if batch.rows else batch.blank())
            with self.precision():
                loss = value(number, batch, self.model(batch))
            if loss.requires_grad:
                loss.backward()

    def _prepared(self, batch: Batch) -> Batch:
        """A micro-batch as the model is given it, on its device."""
        batch = batch.to(device.device())
        with self.precision():
            return self.layout.given(batch, self.objectives[batch.task][0])

    def _counted(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What outputs counted, over all ranks."""
        summed = {name: self.layout.world.sum(count, *TOKENS) for name, count in sorted(counts.items())}
        return dict(sorted(self.layout.world.joined(list(summed.items()), "pipe")))

    def clip(self, limit: float | None) -> float:
        """The norm of the whole gradient, which is scaled down to `limit` if it is longer (None: only measured)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients and self.layout.world.alone:  # a stage on which nothing trains takes part in the norm
            return 0.0
        norm = torch.nn.utils.get_total_norm(gradients) if self.layout.world.alone else self.layout.norm(self.parameters)
        if limit is not None:
            self.layout.clip(self.parameters, limit, norm)
        return float(norm)

    def _totals(self, batches: Sequence[Batch]) -> dict[tuple[str, str], float]:
        """What each task's terms are divided by, over the global batch; and under ("", "rows") and ("", "tokens") its size."""
        totals: dict[tuple[str, str], float] = {("", "rows"): 0.0, ("", "tokens"): 0.0}
        for batch in batches:
            totals["", "rows"] += batch.rows
            totals["", "tokens"] += batch.tokens.numel()
            for name, count in batch.counts().items():
                totals[batch.task, name] = totals.get((batch.task, name), 0.0) + float(count)
        if self.layout.world.count(*ROWS) > 1:
            names = sorted(totals)
            summed = torch.tensor([totals[name] for name in names], dtype=torch.float64, device=device.device())
            totals = dict(zip(names, self.layout.world.sum(summed, *ROWS).tolist(), strict=True))
        return totals

    def _reduced(self, parts: list[Tensor], sums: dict[str, Tensor]) -> tuple[list[float], dict[str, float]]:
        """Each micro-batch's share of the loss, and each term, over all ranks."""
        world = self.layout.world
        if world.alone:
            return [float(part) for part in parts], {name: float(value) for name, value in sums.items()}
        names = sorted(set(world.joined(list(sums), "pipe")))
        sums = {name: sums.get(name, torch.zeros((), dtype=torch.float64, device=device.device())) for name in names}
        found = torch.stack([*(part.double() for part in parts), *(sums[name] for name in names)])
        values = world.sum(found if world.index("tensor") == 0 else found * 0.0, *AXES).tolist()
        return values[: len(parts)], dict(zip(names, values[len(parts) :], strict=True))

    def state(self) -> dict[str, Any]:
        """What it remembers from step to step, as JSON can hold it."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""

    def precision(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(device.device().type, dtype=self.dtype, enabled=self.dtype != torch.float32)
