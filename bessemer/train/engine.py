"""The engine: micro-batches in, one gradient out. It alone knows of accumulation, reduction and number formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bessemer.core import device
from bessemer.core.batch import Batch
from bessemer.core.registry import Choice


@dataclass
class Result:
    """What one forward and backward pass over a global batch found.

    Attributes:
        loss: the weighted sum of every task's terms, each divided by its global count.
        terms: each term by name (`task/term` when there are several tasks), divided by its global count.
        parts: per micro-batch, its share of the loss: where a non-finite value came from.
    """

    loss: float
    terms: dict[str, float]
    parts: list[float] = field(default_factory=list)


class Engine:
    """Runs a model over the micro-batches of one step.

    The sum of every term over all micro-batches is divided by its count over the whole global batch, which is known
    from the batches' weights before the first forward pass. So the gradient doesn't depend on how the rows were cut.

    Args:
        model: Batch -> Outputs.
        objectives: task name -> (objective, the task's weight).
        dtype: what matrix products are computed in; parameters stay in their own type.
    """

    def __init__(self, model: torch.nn.Module, objectives: dict[str, tuple[Choice, float]], dtype: torch.dtype) -> None:
        self.model, self.objectives, self.dtype = model, objectives, dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def forward_backward(self, batches: Sequence[Batch]) -> Result:
        """Accumulates the gradient of the global batch into the parameters' `.grad`."""
        totals = self._totals(batches)
        sums: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        for batch in batches:
            batch = batch.to(device.device())
            with self.precision():
                outputs = self.model(batch)
                objective, weight = self.objectives[batch.task]
                terms = objective(outputs, batch)
            loss = torch.zeros((), device=outputs.hidden.device)
            for name, term in terms:
                total = totals[batch.task, term.over]
                if total == 0.0:
                    continue
                value = term.sum / total
                key = name if len(self.objectives) == 1 else f"{batch.task}/{name}"
                sums[key] = sums.get(key, 0.0) + value.detach().double()
                if term.scale:
                    loss = loss + value * (term.scale * weight)
            parts.append(loss.detach())
            if loss.requires_grad:
                loss.backward()
        shares = [float(part) for part in parts]
        return Result(sum(shares), {name: float(value) for name, value in sums.items()}, shares)

    def clip(self, limit: float | None) -> float:
        """The norm of the whole gradient, which is scaled down to `limit` if it is longer (None: only measured)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return 0.0
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return float(norm)

    def _totals(self, batches: Sequence[Batch]) -> dict[tuple[str, str], float]:
        totals: dict[tuple[str, str], float] = {}
        for batch in batches:
            for name in batch.weights:
                key = (batch.task, name)
                totals[key] = totals.get(key, 0.0) + float(batch.count(name))
        return totals

    def precision(self) -> torch.autocast:
        """The number format of the forward pass."""
        return torch.autocast(device.device().type, dtype=self.dtype, enabled=self.dtype != torch.float32)
