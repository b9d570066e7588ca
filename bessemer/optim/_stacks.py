"""Matrices of the same shape, taken together: what makes orthogonalising many small ones fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.optim._owners import Owners, by_mesh, squared

Change = Callable[[list[Tensor], list[Tensor], float], None]


class Stacks:
    """Finds the single matrices in a group's parameters and hands those of one shape to a function at once.

    Args:
        parameters: of a group, each with the matrices that `shards.matrices` finds in it.
        parts: for each, the row counts of the matrices stacked in it, or () when it is one.
    """

    def __init__(self, parameters: Sequence[Tensor], parts: Sequence[Sequence[int]] | None) -> None:
        self.parameters = parameters
        self.parts = {id(p): tuple(cut) for p, cut in zip(parameters, parts or [()] * len(parameters), strict=True)}
        self.owners: list[Owners] | None = None

    def apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], change: Change, rate: float) -> None:
        """Has `change` move the parameters, all matrices of a shape together.

        Matrices of which each rank holds a piece are put together by one rank each (`_owners.py`); all ranks call this together.

        Args:
            gradients: what `change` is computed from, one for each parameter: its own piece where the parameter is sharded.
            change: takes matrices to be moved, those that a move is computed from, and its rate.
        """
        cut = [n for n, parameter in enumerate(parameters) if shards.pieces(parameter) > 1]
        if cut and self.owners is None:
            self.owners = [Owners(lie, [self.parts[id(p)] for p in lie], squared) for lie in by_mesh(self.parameters)]
        for owners in self.owners or []:
            lie = [n for n in cut if parameters[n] in owners]
            if lie:
                self._apply_cut(owners, [parameters[n] for n in lie], [gradients[n] for n in lie], change, rate)
        here = [n for n in range(len(parameters)) if n not in cut]
        members = [(self.parts[id(parameters[n])], shards.local(parameters[n]), gradients[n]) for n in here]
        self._apply_whole(members, change, rate)

    def _apply_cut(self, owners: Owners, parameters: Sequence[Tensor], pieces: list[Tensor], change: Change, rate: float) -> None:
        def orthogonal(matrices: dict[int, list[Tensor]]) -> dict[int, Tensor]:
            results = {n: torch.zeros_like(matrix) for n, (matrix,) in matrices.items()}
            self._apply_whole([(self.parts[id(parameters[n])], results[n], matrix) for n, (matrix,) in matrices.items()], change, -1.0)
            return results

        for updates in owners.apply(parameters, [pieces], orthogonal):
            torch._foreach_add_([shards.local(parameters[n]) for n in updates], list(updates.values()), alpha=-rate)

    def _apply_whole(self, members: Sequence[tuple[tuple[int, ...], Tensor, Tensor]], change: Change, rate: float) -> None:
        """The same for whole matrices: (parts, what is changed, what the change is computed from)."""
        shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parts, target, gradient in members:
            for place, matrix in zip(shards.matrices(target, parts), shards.matrices(gradient, parts), strict=True):
                shapes.setdefault(tuple(matrix.shape), []).append((place, matrix))
        for found in shapes.values():
            change([place for place, _ in found], [matrix for _, matrix in found], rate)
