"""Matrices of the same shape, taken together: what makes orthogonalising many small ones fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Stacks:
    """Finds the single matrices in a group's parameters and hands those of one shape to a function at once.

    Args:
        parameters: of a group, each [outputs, inputs] or with leading dimensions of independent matrices (experts).
        parts: for each, the row counts of the matrices stacked in it, or () when it is one.
    """

    def __init__(self, parameters: Sequence[Tensor], parts: Sequence[Sequence[int]] | None) -> None:
        self.parts = {id(p): tuple(cut) for p, cut in zip(parameters, parts or [()] * len(parameters), strict=True)}

    def apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], change: Callable[[Tensor], Tensor], rate: float) -> None:
        """Subtracts `rate` times change(stack) from the parameters, stack by stack.

        Args:
            gradients: what `change` is computed from, one for each parameter.
            change: [count, outputs, inputs] -> the same shape.
        """
        shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            for place, matrix in zip(self._split(parameter, parameter), self._split(parameter, gradient), strict=True):
                shapes.setdefault(tuple(matrix.shape), []).append((place, matrix))
        for members in shapes.values():
            found = change(torch.stack([matrix for _, matrix in members]))
            for (place, _), update in zip(members, found, strict=True):
                place.sub_(update, alpha=rate)

    def _split(self, parameter: Tensor, value: Tensor) -> list[Tensor]:
        flat = value.flatten(0, -3) if value.ndim > 2 else value[None]
        rows = self.parts.get(id(parameter)) or (flat.shape[1],)
        return [part for matrix in flat for part in matrix.split(rows)]
