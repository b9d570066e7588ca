"""Tensors of which each rank holds a piece: where the piece lies in the whole, and how the whole is put together.

torch's DTensor says how a tensor is cut along the axes of a mesh. One thing it can't say: a weight that stacks several matrices
(query, key, value; an expert's gate and up) is cut along `tensor` part by part, so a rank's rows are no neighbours in the whole. Functions here take the parts' row
counts where that matters; DTensor's own `full_tensor` would return such a weight with its rows in the order of the ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from bessemer.core.collectives import join_flat

TENSOR = ("tensor", "expert_tensor")
DATA = ("replica", "shard")


def local(value: Tensor) -> Tensor:
    """This rank's piece, or the tensor itself where it is whole."""
    return value._local_tensor if isinstance(value, DTensor) else value


_groups: dict[tuple[int, ...], Any] = {}


def group(mesh: DeviceMesh) -> Any:
    """The process group of a mesh's ranks, in which they count by rank; they all ask for it together the first time."""
    ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
    if ranks not in _groups:
        _groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[ranks]


def summed(of: Sequence[Tensor], values: Tensor) -> Tensor:
    """Sums over the ranks that hold other pieces, in place; all ranks of sharded tensors call this together.

    Args:
        of: what the values are of.
        values: [len(of), ...], what this rank's piece of each adds.
    """
    by_mesh: dict[DeviceMesh, list[int]] = {}
    for number, value in enumerate(of):
        if isinstance(value, DTensor) and pieces(value) > 1:
            by_mesh.setdefault(value.device_mesh, []).append(number)
    for mesh, which in by_mesh.items():
        copies = [mesh.size() / pieces(of[n]) for n in which]
        part = values[which] / torch.tensor(copies, dtype=values.dtype, device=values.device).view(-1, *[1] * (values.ndim - 1))
        dist.all_reduce(part, group=group(mesh))
        values[which] = part
    return values


def norms(tensors: Sequence[Tensor], held: Sequence[Tensor] | None = None) -> Tensor:
    """The tensors' norms, whole, in one row; all ranks of sharded ones call this together.

    Args:
        held: what of each this rank counts, if not all that it holds.
    """
    if not tensors:
        return torch.zeros(0)
    found = torch.stack(torch._foreach_norm([local(t) for t in tensors] if held is None else list(held)))
    if all(pieces(t) == 1 for t in tensors):
        return found
    return summed(tensors, found.double().square_()).sqrt_().to(found.dtype)  # in float32 a small number's square would be none


def fill(value: Tensor, whole: Tensor, parts: Sequence[int] = ()) -> None:
    """Takes a tensor's numbers from one that every rank has whole, in place; the reverse of `whole`."""
    if isinstance(value, DTensor):
        at = value.device_mesh.get_coordinate()
        assert at is not None
        whole = whole[grid(place(value, at, parts))]
    local(value).copy_(whole)


def alike(piece: Tensor, value: Tensor) -> Tensor:
    """This rank's piece of a tensor that is cut as `value` is."""
    if not isinstance(value, DTensor):
        return piece
    return DTensor.from_local(piece, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def pieces(value: Tensor) -> int:
    """Into how many pieces it is cut; ranks that hold the same piece not counted."""
    count = 1
    for size, placement in zip(value.device_mesh.shape, value.placements, strict=True) if isinstance(value, DTensor) else ():
        count *= 1 if placement.is_replicate() else size
    return count


def rows_of(parts: Sequence[int], index: int, count: int) -> list[tuple[int, int]]:
    """The spans of rows that piece `index` of `count` takes from each stacked part."""
    spans, begin = [], 0
    for size in parts:
        spans.append((begin + size * index // count, begin + size * (index + 1) // count))
        begin += size
    return spans


def matrices(value: Tensor, parts: Sequence[int] = ()) -> list[Tensor]:
    """The matrices in a weight, as views [outputs, inputs]: itself, those stacked in it, those of each expert [experts, outputs, inputs].

    Three dimensions are experts'; those of a kernel [outputs, inputs, height, width, ...] after its first are all inputs; a vector is returned as
    it is. Of a weight that lies on several ranks these are the pieces held here, empty ones for matrices that lie elsewhere altogether.

    Args:
        parts: rows of the matrices stacked in it, or in each expert's.
    """
    here = local(value)
    if here.ndim < 2:
        return [here]
    rows = list(parts) or [value.shape[outputs(value)]]
    flat = here if here.ndim == 3 else here[None] if here.ndim == 2 else here.view(here.shape[0], math.prod(here.shape[1:]))[None]
    if not isinstance(value, DTensor):
        return [part for matrix in flat for part in matrix.split_with_sizes(rows)]
    at = value.device_mesh.get_coordinate()
    assert at is not None
    held = place(value, at, parts)
    stack = torch.bucketize(held[outputs(value)], torch.tensor(rows).cumsum(0), right=True).bincount(minlength=len(rows)).tolist()
    numbers, count = (held[0].tolist(), value.shape[0]) if value.ndim == 3 else ([0], 1)
    experts = dict(zip(numbers, flat, strict=True))
    none = [flat.new_empty(0, flat.shape[2])] * len(rows)
    return [part for n in range(count) for part in (experts[n].split_with_sizes(stack) if n in experts else none)]


def cut(value: Tensor, mesh: DeviceMesh, *dims: int | None, parts: Sequence[int] = ()) -> DTensor:
    """A DTensor of a tensor that every rank of a mesh holds whole: along each axis of the mesh cut along a dimension, or replicated (None).

    Args:
        parts: rows of the matrices stacked along the dimension of outputs; each is cut by itself. Only for sizes the ranks divide.
    """
    at = mesh.get_coordinate()
    assert at is not None
    piece, placements = value, [Replicate() if dim is None else Shard(dim) for dim in dims]
    for index, count, dim in zip(at, mesh.shape, dims, strict=True):
        if dim is not None and dim == outputs(value) and len(parts) > 1:
            piece = torch.cat([piece.narrow(dim, start, stop - start) for start, stop in rows_of(parts, index, count)], dim)
        elif dim is not None:
            size = -(-piece.shape[dim] // count)
            start = min(index * size, piece.shape[dim])
            piece = piece.narrow(dim, start, min(size, piece.shape[dim] - start)).clone()
    return DTensor.from_local(piece.contiguous(), mesh, placements, run_check=False, shape=value.shape, stride=value.stride())


def outputs(value: Tensor) -> int:
    """The dimension of a weight's outputs, along which several matrices may be stacked: after the experts, else the first."""
    return 1 if value.ndim == 3 else 0


def whole(value: Tensor, parts: Sequence[int] = ()) -> Tensor:
    """The whole tensor, on every rank of its mesh, which call this together.

    Args:
        parts: as given to `cut`.
    """
    if not isinstance(value, DTensor):
        return value
    mesh, here = value.device_mesh, value.device_mesh.get_coordinate()
    assert here is not None
    gathered = {tuple(here): local(value).reshape(-1)}
    for axis in range(mesh.ndim):
        if not value.placements[axis].is_replicate():
            gathered = _gathered(value, gathered, axis, parts)
    found = local(value).new_empty(value.shape)
    for at, piece in gathered.items():
        held = runs(value, at, parts)
        for into, from_ in blocks(found, piece.view([length(each) for each in held]), held):
            into.copy_(from_)
    return found


def _gathered(value: DTensor, held: dict[tuple[int, ...], Tensor], axis: int, parts: Sequence[int]) -> dict[tuple[int, ...], Tensor]:
    """The pieces that all ranks along one axis of the mesh hold, by coordinate."""
    count = value.device_mesh.size(axis)
    keys = [[(*at[:axis], index, *at[axis + 1 :]) for at in sorted(held)] for index in range(count)]
    sizes = [[math.prod(map(length, runs(value, at, parts))) for at in row] for row in keys]
    most = max(map(sum, sizes))
    mine = torch.cat([held[at] for at in sorted(held)])
    flat = mine.new_empty(count * most)
    join_flat(flat, torch.nn.functional.pad(mine, (0, most - len(mine))), group=value.device_mesh.get_group(axis))
    found: dict[tuple[int, ...], Tensor] = {}
    for row, cuts, part in zip(keys, sizes, flat.split(most) if most else [flat] * count, strict=True):
        found |= dict(zip(row, part[: sum(cuts)].split(cuts), strict=True))
    return found


def coordinates(mesh: DeviceMesh) -> list[tuple[int, ...]]:
    """Every rank's place in a mesh, in the order of `mesh.mesh.flatten()`."""
    return [tuple(place) for place in torch.cartesian_prod(*(torch.arange(size) for size in mesh.shape)).view(-1, mesh.ndim).tolist()]


Run = tuple[int, int]
"""Indices of neighbours: from the first to before the second."""


def runs(value: DTensor, coordinate: Sequence[int], parts: Sequence[int] = ()) -> list[list[Run]]:
    """Which indices of the whole the rank at `coordinate` of the mesh holds, along each dimension, as runs of neighbours in their order there.

    Args:
        parts: as given to `cut`.
    """
    held: list[list[Run]] = [[(0, size)] for size in value.shape]
    names = value.device_mesh.mesh_dim_names or ("",) * value.device_mesh.ndim
    for axis in sorted(range(value.device_mesh.ndim), key=lambda axis: names[axis] in DATA):  # data is cut from what tensor and expert left
        placement: Any = value.placements[axis]
        if placement.is_replicate():
            continue
        dim, index, count = placement.dim, coordinate[axis], value.device_mesh.size(axis)
        if names[axis] in TENSOR and dim == outputs(value) and len(parts) > 1:
            held[dim] = rows_of(parts, index, count)
        else:
            size = -(-length(held[dim]) // count)
            held[dim] = _span(held[dim], index * size, (index + 1) * size)
    return held


def length(found: Sequence[Run]) -> int:
    """How many indices runs have."""
    return sum(stop - start for start, stop in found)


def _span(found: Sequence[Run], first: int, last: int) -> list[Run]:
    """Runs of the indices from place `first` to before `last`."""
    out, before = [], 0
    for start, stop in found:
        low, high = max(start, start + first - before), min(stop, start + last - before)
        if low < high:
            out.append((low, high))
        before += stop - start
    return out


def blocks(whole: Tensor, piece: Tensor, held: Sequence[Sequence[Run]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a whole tensor and of a piece of it that hold the same numbers, and together all of the piece's.

    Args:
        piece: of the shape that the runs have.
        held: along each dimension.
    """
    for found in itertools.product(*map(placed, held)):
        there, here = whole, piece
        for dim, (start, size, begin) in enumerate(found):
            there, here = there.narrow(dim, start, size), here.narrow(dim, begin, size)
        yield there, here


def placed(found: Sequence[Run]) -> list[tuple[int, int, int]]:
    """(first index, how many, where that lies in the piece) of each run that has any."""
    out, begin = [], 0
    for start, stop in found:
        if stop > start:
            out.append((start, stop - start, begin))
        begin += stop - start
    return out


def place(value: DTensor, coordinate: Sequence[int], parts: Sequence[int] = ()) -> list[Tensor]:
    """The same as indices: ascending within each stacked part."""
    return [torch.cat([torch.arange(0), *(torch.arange(start, stop) for start, stop in found)]) for found in runs(value, coordinate, parts)]


def where(value: Tensor, places: Tensor, parts: Sequence[int] = ()) -> Tensor:
    """Where in this rank's flat piece numbers of the flat whole lie, -1 for those that lie elsewhere.

    Args:
        places: int64.
        parts: as given to `cut`.
    """
    if not isinstance(value, DTensor):
        return places
    at = value.device_mesh.get_coordinate()
    assert at is not None
    here = torch.arange(value.numel()).view(value.shape)[grid(place(value, at, parts))].reshape(-1)  # ascending
    found = torch.searchsorted(here, places)
    return torch.where(torch.isin(places, here), found, -1)


def grid(held: list[Tensor]) -> tuple[Tensor, ...]:
    """Indices that pick these places along every dimension at once."""
    return tuple(index.view([-1 if d == n else 1 for d in range(len(held))]) for n, index in enumerate(held))
