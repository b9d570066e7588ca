"""The engine for tasks whose gradients are weighed against each other before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice
from bessemer.objectives._objective import Objective
from bessemer.parallel.layout import Layout
from bessemer.train.balance._gradient import Gradient
from bessemer.train.engine import Engine, Result


class Balanced(Engine):
    """An engine that takes each task's gradient by itself and lets a method of train/balance make one of them.

    It holds as many gradients at once as a step has tasks.

    Args:
        balance: the method.

    Raises:
        RecipeError: the gradient lies on several ranks.
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
        if not self.layout.world.alone:
            problem = f"{balance.name} compares whole gradients, and they lie on several ranks"
            raise RecipeError(problem, key="balance", mend="balance on one process, or leave it out")
        self.balance = balance()

    def forward_backward(self, batches: Sequence[Batch]) -> Result:
        """Accumulates the balanced gradient of the global batch into the parameters' `.grad`."""
        found, results = gradients(super().forward_backward, self.model, batches)
        combined = self.balance(found) if len(found) > 1 else found[0].parts
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trained, combined, strict=True):
            parameter.grad = gradient
        terms = {name: value for result in results for name, value in result.terms.items()}
        counts: dict[str, torch.Tensor] = {}
        for result in results:
            for name, count in result.counts.items():
                counts[name] = counts[name] + count if name in counts else count
        rows, tokens = (sum(getattr(result, size) for result in results) for size in ("rows", "tokens"))
        return Result(sum(r.loss for r in results), terms, rows, tokens, [part for r in results for part in r.parts], counts)

    def state(self) -> dict[str, Any]:
        return self.balance.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.balance.restore(state)


def gradients(forward_backward: Any, model: torch.nn.Module, batches: Sequence[Batch]) -> tuple[list[Gradient], list[Result]]:
    """Each task's gradient over its batches of a step, taken by itself, and its result; the parameters' `.grad` are left empty."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found, results = [], []
    for task in dict.fromkeys(batch.task for batch in batches):
        for _, parameter in named:
            parameter.grad = None
        result = forward_backward([batch for batch in batches if batch.task == task])
        found.append(Gradient(task, result.loss, [p.grad for _, p in named], [name for name, _ in named]))
        results.append(result)
    for _, parameter in named:
        parameter.grad = None
    return found, results
