"""The engine for tasks whose gradients are weighed against each other before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice
from bessemer.objectives._objective import Objective
from bessemer.parallel.layout import Layout
from bessemer.train.balance._gradient import Gradient
from bessemer.train.engine import Engine, Result


class Balanced(Engine):
    """An engine that takes each task's gradient by itself and lets a method of train/balance make one of them.

    It holds as many gradients at once as a step has tasks. Where ranks hold pieces of them, inner products are summed over these.

    Args:
        balance: the method.

    Raises:
        RecipeError: stages of a pipeline hold the layers, or the method needs whole gradients and ranks hold pieces.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objectives: dict[str, tuple[Objective, float]],
        dtype: torch.dtype,
        balance: Choice,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(model, objectives, dtype, layout)
        if self.layout.stages is not None:
            problem = f"{balance.name} weighs whole steps against each other, whose layers lie on stages of a pipeline"
            raise RecipeError(problem, key="balance", mend="use mesh.pipe = 1, or leave it out")
        if getattr(balance.target, "whole", False) and any(shards.pieces(p) > 1 for p in model.parameters()):
            problem = f"{balance.name} needs whole gradients, and ranks hold pieces of them"
            raise RecipeError(problem, key="balance", mend='use another balance, or parallel.shard = "none" without mesh.tensor and mesh.expert')
        self.balance = balance()

    def forward_backward(self, batches: Sequence[Batch]) -> Result:
        """Accumulates the balanced gradient of the global batch into the parameters' `.grad`."""
        found, results = gradients(super().forward_backward, self.layout, batches)
        combined = self.balance(found) if len(found) > 1 else found[0].parts
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trained, combined, strict=True):
            parameter.grad = None if gradient is None else shards.alike(gradient, parameter)
        terms = {name: value for result in results for name, value in result.terms.items()}
        counts: dict[str, Tensor] = {}
        for result in results:
            for name, count in result.counts.items():
                counts[name] = counts[name] + count if name in counts else count
        rows, tokens = (sum(getattr(result, size) for result in results) for size in ("rows", "tokens"))
        return Result(sum(r.loss for r in results), terms, rows, tokens, [part for r in results for part in r.parts], counts)

    def state(self) -> dict[str, Any]:
        return self.balance.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.balance.restore(state)


def gradients(forward_backward: Any, layout: Layout, batches: Sequence[Batch]) -> tuple[list[Gradient], list[Result]]:
    """Each task's gradient over its batches of a step, taken by itself, and its result; the parameters' `.grad` are left empty."""
    named = [(name, p) for name, p in layout.model.named_parameters() if p.requires_grad]
    pieces = {name: shards.pieces(p) for name, p in named}

    def inner(names: Sequence[str], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return layout.inner([pieces[name] for name in names], a, b)

    found, results = [], []
    for task in dict.fromkeys(batch.task for batch in batches):
        for _, parameter in named:
            parameter.grad = None
        result = forward_backward([batch for batch in batches if batch.task == task])
        parts = [None if p.grad is None else shards.local(p.grad) for _, p in named]
        found.append(Gradient(task, result.loss, parts, [name for name, _ in named], inner))
        results.append(result)
    for _, parameter in named:
        parameter.grad = None
    return found, results
