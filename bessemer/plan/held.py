"""Bytes that a rank holds: parameters, gradients, optimizer state, and what a forward pass keeps."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bessemer.core import shards
from bessemer.core.mesh import AXES, FOLDED, World
from bessemer.core.registry import Choice
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.expert import products
from bessemer.parallel.layout import Layout
from bessemer.parallel.levels import Levels
from bessemer.parallel.order import Parallel
from bessemer.train import optimizers

ALIKE, APART, COPIED = "alike", "apart", "copied"
State = dict[str, list[tuple[str, int]]]
"""By parameter, for each tensor of an optimizer's state, where it lies, and its bytes for the whole of it.

ALIKE: shaped like the parameter, and cut as that is. APART: of a parameter that ranks hold pieces of, one rank has it (optim/_owners.py).
COPIED: all have it.
"""


class Ones(FakeTensorMode):
    """Tensors without memory whose every number, where someone asks for it, is one."""

    def dispatch(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            kind = arguments[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        return super().dispatch(function, types, arguments, keywords)


class Held:
    """Counts what a forward pass keeps while it is entered; each memory once, parameters aside, only the first time.

    What autograd saves is told by its hooks. Blocks that forget all but the results of some operators (parallel/remat.py) hold these
    elsewhere, so they are noted as they are made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._seen: dict[int, Tensor] = {}
        self._parameters: set[int] = set()
        self._done = False
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._note)
            if getattr(module, "kept", None):
                mode = _Results(module.kept, self)  # type: ignore[arg-type]
                module.register_forward_pre_hook(mode.begin)
                module.register_forward_hook(mode.end)

    def __enter__(self) -> Held:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.note, lambda kept: kept)
        self._hooks.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self._hooks.__exit__(*how)
        if not self._done:
            self.bytes = sum(_storage_bytes(kept) for key, kept in self._seen.items() if key not in self._parameters)
        self._done = True
        self._seen.clear()

    def restart(self) -> None:
        """Counts the next forward pass anew."""
        self.bytes, self._done = 0, False

    def _note(self, module: nn.Module, given: Any) -> None:
        self._parameters |= {_storage(p) for p in module.parameters(recurse=False)}

    def note(self, kept: Tensor) -> Tensor:
        """Counts a tensor."""
        if not self._done:
            self._seen[_storage(kept)] = kept
        return kept


class _Results(TorchDispatchMode):
    """Notes the results of some operators inside a module."""

    def __init__(self, kept: set[Any], held: Held) -> None:
        super().__init__()
        self.kept, self.held = kept, held

    def begin(self, module: nn.Module, given: Any) -> None:
        self.__enter__()

    def end(self, module: nn.Module, given: Any, found: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = function(*arguments, **(keywords or {}))
        if function in self.kept:
            for each in tree_iter(found):
                if isinstance(each, Tensor):
                    self.held.note(each)
        return found


def _storage(tensor: Tensor) -> int:
    return shards.local(tensor).untyped_storage()._cdata


def _storage_bytes(tensor: Tensor) -> int:
    return shards.local(tensor).untyped_storage().nbytes()


def state(choices: list[Choice], model: nn.Module, mode: Ones) -> State | None:
    """The optimizers' state as their own first step makes it, on tensors without memory; None where that needs numbers."""
    built = optimizers.build(model, choices, parameter_roles(model))
    names = {id(p): name for name, p in model.named_parameters()}
    with mode:  # a `Ones`, for some updates look whether gradients are finite
        for parameter in model.parameters():
            parameter.grad = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device) if parameter.requires_grad else None
        try:
            built.step()
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
    found: State = {}
    for optimizer in built.optimizers:
        for moved, entries in optimizer.state.items():
            held = [value for value in entries.values() if isinstance(value, Tensor) and value.ndim]
            whole = getattr(optimizer, "whole", False)
            lies = [APART if whole else ALIKE if value.shape == moved.shape else COPIED for value in held]
            found[names[id(moved)]] = [(where, value.numel() * value.element_size()) for where, value in zip(lies, held, strict=True)]
    return found


def by_rank(model: nn.Module, world: World) -> dict[str, numpy.ndarray[Any, Any]]:
    """How many elements of each parameter of this place of the pipe axis each rank holds: int64 [ranks]."""
    routed: set[int] = {id(p) for product in products(model) for p in product.parameters()}
    ordinary, folded = coordinates(world, AXES), coordinates(world, FOLDED)
    return {name: _elements(p, folded if id(p) in routed else ordinary, world.mesh.ranks) for name, p in model.named_parameters() if not p.is_meta}


def coordinates(world: World, view: tuple[str, ...]) -> dict[str, numpy.ndarray[Any, Any]]:
    """Each rank's place along the axes of DTensors' meshes, by their names."""
    left, found = numpy.arange(world.mesh.ranks), {}
    for axis in reversed(view):
        left, found[axis] = numpy.divmod(left, getattr(world.mesh, axis))
    shard = found["expert_data"] if "expert_data" in found else found["data"] * world.mesh.context + found["context"]
    return found | {"shard": shard}


def _elements(parameter: Any, coordinates: dict[str, numpy.ndarray[Any, Any]], ranks: int) -> numpy.ndarray[Any, Any]:
    sizes = [numpy.full(ranks, size, dtype=numpy.int64) for size in parameter.shape]
    if isinstance(parameter, DTensor):
        mesh: Any = parameter.device_mesh
        axes = list(zip(mesh.mesh_dim_names, mesh.shape, parameter.placements, strict=True))
        placement: Any
        for name, count, placement in sorted(axes, key=lambda each: each[0] in shards.DATA):  # as shards.place does
            if not placement.is_replicate():
                piece = -(-sizes[placement.dim] // count)
                sizes[placement.dim] = numpy.clip(sizes[placement.dim] - coordinates[name] * piece, 0, piece)
    return numpy.prod(sizes, axis=0)


def parameters(model: nn.Module, world: World) -> numpy.ndarray[Any, Any]:
    """Bytes of parameters of each rank: [ranks]."""
    return _bytes(model, world, dict(model.named_parameters()))


def _bytes(model: nn.Module, world: World, of: dict[str, nn.Parameter]) -> numpy.ndarray[Any, Any]:
    found = by_rank(model, world).items()
    return sum((counts * of[name].element_size() for name, counts in found if name in of), numpy.zeros(world.mesh.ranks))


def gradients(model: nn.Module, world: World, layout: Layout) -> numpy.ndarray[Any, Any]:
    """Bytes of gradients of each rank between micro-batches: like the parameters', or whole until the last where they are sharded only then."""
    sharded = _bytes(model, world, {name: p for name, p in model.named_parameters() if p.requires_grad})
    if layout.levels:  # what the last micro-batch will give, and the node's sums so far
        return sharded + sum(whole / level.node for level, whole in _by_levels(model, layout))
    if not layout.unsharded:
        return sharded
    return numpy.full(world.mesh.ranks, sum(_within(p) for p in model.parameters() if p.requires_grad and not p.is_meta))


def own_state(state: State, model: nn.Module, world: World) -> numpy.ndarray[Any, Any]:
    """Bytes of optimizer state of each rank, without what one rank has for several."""
    named, found = dict(model.named_parameters()), numpy.zeros(world.mesh.ranks)
    for name, counts in by_rank(model, world).items():
        for where, size in state.get(name, []):
            if where == ALIKE:
                found = found + size * counts / named[name].numel()
            elif where == COPIED or shards.pieces(named[name]) == 1:
                found = found + size
    return found


def gathered(model: Any, layout: Layout, options: Parallel, dtype: torch.dtype) -> float:
    """Bytes of parameters put together for use, beside the shards: the rest's and two blocks', or all where they stay so for a step."""
    held = [p for p in model.parameters() if not p.is_meta]
    if not any(isinstance(p, DTensor) and "shard" in (p.device_mesh.mesh_dim_names or ()) for p in held):
        return 0.0
    travel = dtype.itemsize / 4 if options.gather == "compute" else 1.0
    blocks = [sum(_within(p) for p in block.parameters() if not p.is_meta) for block in model.blocks]
    whole = sum(_within(p) for p in held)
    kept = layout.gathered or layout.stages is not None
    near = sum(size / level.pair for level, size in _by_levels(model, layout))
    return travel * ((whole if kept else whole - sum(blocks) + 2 * max(blocks)) + near)


def _by_levels(model: Any, layout: Layout) -> list[tuple[Levels, float]]:
    """The groups of ranks that share out ordinary parameters, and those that share out experts', with the bytes of these."""
    routed = {id(p) for product in products(model) for p in product.parameters()} if len(layout.levels) > 1 else set()
    sizes = {kind: sum(_within(p) for p in model.parameters() if not p.is_meta and (id(p) in routed) == kind) for kind in (False, True)}
    return [(level, sizes[bool(number)]) for number, level in enumerate(layout.levels)]


def _within(parameter: Any) -> float:
    """Bytes of what one rank works with: the whole, or its share along tensor or expert."""
    pieces = 1
    if isinstance(parameter, DTensor):
        mesh: Any = parameter.device_mesh
        for name, count, placement in zip(mesh.mesh_dim_names, mesh.shape, parameter.placements, strict=True):
            pieces *= 1 if placement.is_replicate() or name in shards.DATA else count
    return parameter.numel() * parameter.element_size() / pieces
