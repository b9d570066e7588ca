"""What an optimizer's update takes of each rank beside pieces of state: state that one rank keeps for all, copies of parameters, and traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
from torch import nn
from torch.optim import Optimizer

from bessemer.core import shards
from bessemer.core.mesh import AXES, FOLDED, World
from bessemer.optim._owners import by_mesh, numbers, owners_of, rounds
from bessemer.optim._rule import Rule
from bessemer.optim.around._around import Around
from bessemer.parallel.expert import products
from bessemer.plan.held import APART, State, by_rank, coordinates
from bessemer.plan.traffic import Traffic


def kept_alone(state: State, moving: Sequence[Optimizer], model: nn.Module, world: World) -> numpy.ndarray[Any, Any]:
    """Bytes of optimizer state of each rank that it has for all that hold pieces of a parameter.

    Args:
        moving: the optimizers of a model that has every block.
    """
    found, names = numpy.zeros(world.mesh.ranks), {id(p): name for name, p in model.named_parameters()}
    routed = {id(p) for product in products(model) for p in product.parameters()}
    for rule in moving:
        if not isinstance(rule, Rule) or not rule.whole:
            continue
        for folded in (False, True):
            for members in by_mesh([p for group in rule.param_groups for p in group["params"] if (id(p) in routed) == folded]):
                mesh: Any = members[0].device_mesh
                along, place = coordinates(world, FOLDED if folded else AXES), numpy.zeros(world.mesh.ranks, dtype=numpy.int64)
                for axis, count in zip(mesh.mesh_dim_names, mesh.shape, strict=True):
                    place = place * count + along[axis]
                held = numpy.zeros(mesh.size())
                for parameter, owner in zip(members, owners_of(list(map(rule.cost, members)), mesh.size()), strict=True):
                    held[owner] += sum(size for where, size in state.get(names[id(parameter)], []) if where == APART)
                found += held[place]
    return found


def beside(methods: Sequence[Around], model: nn.Module, world: World) -> numpy.ndarray[Any, Any]:
    """Bytes of each rank of what methods around the update come to hold; the model has every block."""
    found, counts = numpy.zeros(world.mesh.ranks), by_rank(model, world)
    for method in methods:
        for parameter, name in method.names.items():
            found = found + method.copies * parameter.element_size() * counts[name]
    return found


def travels(moving: Sequence[Optimizer]) -> list[Traffic]:
    """What a rank sends on the average so that single ranks move, or orthogonalise, whole parameters: pieces there and results back."""
    found: dict[tuple[str, ...], Traffic] = {}
    for rule in moving:
        columns, cost = getattr(rule, "columns", 0), getattr(rule, "cost", numbers)
        for members in [] if not columns else by_mesh([p for group in rule.param_groups for p in group["params"]]):
            mesh: Any = members[0].device_mesh
            row = found.setdefault(mesh.mesh_dim_names, Traffic("all-to-all of updates", " x ".join(mesh.mesh_dim_names), mesh.size()))
            row.calls += (columns + 1) * len(rounds(members, cost, mesh.size()))
            for parameter in members:
                whole = parameter.numel() * parameter.element_size()
                piece = whole / shards.pieces(parameter)
                row.bytes += (columns * (whole - piece) + (mesh.size() - 1) * piece) / mesh.size()
    return list(found.values())
