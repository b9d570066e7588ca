"""Matrices of the same shape, taken together: what makes orthogonalising many small ones fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.optim._owners import Owners

Change = Callable[[list[Tensor], list[Tensor], float], None]


class Stacks:
    """Finds the single matrices in a group's parameters and hands those of one shape to a function at once.

    Args:
        parameters: of a group, each [outputs, inputs] or with leading dimensions of independent matrices (experts).
        parts: for each, the row counts of the matrices stacked in it, or () when it is one.
    """

    def __init__(self, parameters: Sequence[Tensor], parts: Sequence[Sequence[int]] | None) -> None:
        self.parts = {id(p): tuple(cut) for p, cut in zip(parameters, parts or [()] * len(parameters), strict=True)}
        self.owners: dict[tuple[int, ...], Owners] = {}

    def apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], change: Change, rate: float) -> None:
        """Has `change` move the parameters, all matrices of a shape together.

        Matrices of which each rank holds a piece are put together by one rank each (`_owners.py`); all ranks call this together.

        Args:
            gradients: what `change` is computed from, one for each parameter: its own piece where the parameter is sharded.
            change: takes matrices to be moved, those that a move is computed from, and its rate.
        """
        cut = [n for n, parameter in enumerate(parameters) if shards.pieces(parameter) > 1]
        for mesh in dict.fromkeys(parameters[n].device_mesh for n in cut):  # type: ignore[attr-defined]
            lie = [n for n in cut if parameters[n].device_mesh == mesh]  # type: ignore[attr-defined]
            self._apply_cut([parameters[n] for n in lie], [gradients[n] for n in lie], change, rate)
        here = [n for n in range(len(parameters)) if n not in cut]
        members = [(self._parts(parameters[n]), shards.local(parameters[n]), gradients[n]) for n in here]
        self._apply_whole(members, change, rate)

    def _apply_cut(self, parameters: Sequence[Any], pieces: list[Tensor], change: Change, rate: float) -> None:
        key = tuple(map(id, parameters))
        if key not in self.owners:
            self.owners[key] = Owners(parameters, [self._parts(p) for p in parameters])

        def orthogonal(matrices: dict[int, Tensor]) -> dict[int, Tensor]:
            results = {n: torch.zeros_like(matrix) for n, matrix in matrices.items()}
            self._apply_whole([(self._parts(parameters[n]), results[n], matrix) for n, matrix in matrices.items()], change, -1.0)
            return results

        updates = self.owners[key].apply(pieces, orthogonal)
        torch._foreach_add_([shards.local(p) for p in parameters], updates, alpha=-rate)

    def _apply_whole(self, members: Sequence[tuple[tuple[int, ...], Tensor, Tensor]], change: Change, rate: float) -> None:
        """The same for whole matrices: (parts, what is changed, what the change is computed from)."""
        shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parts, target, gradient in members:
            for place, matrix in zip(_split(parts, target), _split(parts, gradient), strict=True):
                shapes.setdefault(tuple(matrix.shape), []).append((place, matrix))
        for found in shapes.values():
            change([place for place, _ in found], [matrix for _, matrix in found], rate)

    def _parts(self, parameter: Tensor) -> tuple[int, ...]:
        return self.parts.get(id(parameter)) or ()


def _split(parts: tuple[int, ...], value: Tensor) -> list[Tensor]:
    flat = value.flatten(0, -3) if value.ndim > 2 else value[None]
    return [part for matrix in flat for part in matrix.split(parts or (flat.shape[1],))]
