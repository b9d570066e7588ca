"""Matrices of the same shape, taken together: what makes orthogonalising many small ones fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bessemer.core import shards
from bessemer.optim._newton_schulz import Momentum
from bessemer.optim._owners import Owners, by_mesh, squared


class Change(Protocol):
    """`subtract_orthogonal` with its steps and polynomial."""

    def __call__(
        self,
        places: list[Tensor],
        matrices: list[Tensor],
        rate: float,
        *,
        keep: float = 1.0,
        means: list[Tensor] | None = None,
        momentum: Momentum | None = None,
    ) -> None: ...


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

    def apply(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        means: Sequence[Tensor],
        momentum: Momentum,
        change: Change,
        *,
        rate: float,
        keep: float,
    ) -> None:
        """Has `change` move the parameters, all matrices of a shape together.

        Matrices of which each rank holds a piece are put together by one rank each (`_owners.py`); all ranks call this together.

        Args:
            gradients, means: what a move is computed from, one for each parameter: its own piece where the parameter is sharded.
            change: `subtract_orthogonal`, whose other arguments these are.
        """
        cut = [n for n, parameter in enumerate(parameters) if shards.pieces(parameter) > 1]
        if cut and self.owners is None:
            self.owners = [Owners(lie, [self.parts[id(p)] for p in lie], squared) for lie in by_mesh(self.parameters)]
        for owners in self.owners or []:
            lie = [n for n in cut if parameters[n] in owners]
            if lie:
                pieces = momentum.take([gradients[n] for n in lie], [means[n] for n in lie])
                torch._foreach_mul_([shards.local(parameters[n]) for n in lie], keep)
                self._apply_cut(owners, [parameters[n] for n in lie], pieces, change, rate)
        here = [(self.parts[id(p)], shards.local(p), gradients[n], means[n]) for n, p in enumerate(parameters) if n not in cut]
        for places, slopes, running in _by_shape(here):
            change(places, slopes, rate, keep=keep, means=running, momentum=momentum)

    def _apply_cut(self, owners: Owners, parameters: Sequence[Tensor], pieces: list[Tensor], change: Change, rate: float) -> None:
        def orthogonal(matrices: dict[int, list[Tensor]]) -> dict[int, Tensor]:
            results = {n: torch.zeros_like(matrix) for n, (matrix,) in matrices.items()}
            for places, found in _by_shape([(self.parts[id(parameters[n])], results[n], matrix) for n, (matrix,) in matrices.items()]):
                change(places, found, -1.0)
            return results

        for updates in owners.apply(parameters, [pieces], orthogonal):
            torch._foreach_add_([shards.local(parameters[n]) for n in updates], list(updates.values()), alpha=-rate)


def _by_shape(members: Sequence[tuple[Any, ...]]) -> list[list[list[Tensor]]]:
    """The matrices in tensors that belong together, as columns of equal shape.

    Args:
        members: (parts, tensor, tensor, ...) each.
    """
    shapes: dict[tuple[int, ...], list[list[Tensor]]] = {}
    for parts, *tensors in members:
        for row in zip(*(shards.matrices(t, parts) for t in tensors), strict=True):
            columns = shapes.setdefault(tuple(row[0].shape), [[] for _ in row])
            for column, matrix in zip(columns, row, strict=True):
                column.append(matrix)
    return list(shapes.values())
