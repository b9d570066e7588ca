"""The mesh: how the ranks of a run are arranged, and the groups of ranks that work together along its axes.

Ranks count through the axes from the last to the first: neighbours along `tensor` are neighbours in number, replicas and stages
are furthest apart. The ranks of one (data, context, tensor) block are folded a second time for layers of experts, into
(expert_data, expert, expert_tensor).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from bessemer.core import device
from bessemer.core.errors import RecipeError, neighbours

AXES = ("pipe", "replica", "data", "context", "tensor")
FOLDED = ("pipe", "replica", "expert_data", "expert", "expert_tensor")
ROWS = ("replica", "data")
"""The axes over which the rows of a batch are divided."""
TOKENS = ("replica", "data", "context")
"""The axes over which the tokens of a batch are divided, and gradients summed."""
TIMEOUT = timedelta(seconds=float(os.environ.get("BESSEMER_COLLECTIVE_SECONDS", "1800")))


@dataclass(frozen=True)
class Mesh:
    """How many ranks there are along each axis; all 1 is one process.

    Attributes:
        pipe: stages of layers one after the other.
        replica: copies of what the inner axes hold; between them only gradients travel.
        data: ranks that share the rows of a batch, and parameters, gradients and optimizer state as `shard` says.
        context: ranks that share the columns of every row.
        tensor: ranks that share each matrix product.
        expert: ranks that share the experts of a layer, folded out of data x context x tensor.
        expert_tensor: ranks that share each expert's products.
    """

    pipe: int = 1
    replica: int = 1
    data: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    expert_tensor: int = 1

    def __post_init__(self) -> None:
        for name, count in asdict(self).items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise RecipeError(f"an axis of the mesh is a whole number of ranks from 1 on, and {count!r} is given", key=f"mesh.{name}")
        inner, folded = self.data * self.context * self.tensor, self.expert * self.expert_tensor
        if inner % folded:
            problem = f"{self.expert} x {self.expert_tensor} ranks of experts can't be folded out of the {inner} ranks of data x context x tensor"
            raise RecipeError(problem, key="mesh.expert", mend=f"choose a product that divides {inner}")

    @classmethod
    def of(cls, sizes: dict[str, int]) -> Mesh:
        """A mesh from a recipe's table.

        Raises:
            RecipeError: there is no such axis, or a size is no whole number from 1 on.
        """
        known = [field.name for field in fields(cls)]
        for name in sizes:
            if name not in known:
                raise RecipeError("a mesh has no such axis", key=f"mesh.{name}", mend=neighbours(name, known))
        return cls(**sizes)

    @property
    def ranks(self) -> int:
        """How many processes it takes."""
        return self.pipe * self.replica * self.data * self.context * self.tensor

    @property
    def expert_data(self) -> int:
        """Ranks that hold the same experts inside one replica."""
        return self.data * self.context * self.tensor // (self.expert * self.expert_tensor)

    def count(self, *axes: str) -> int:
        """Ranks along these axes together."""
        return math.prod(getattr(self, axis) for axis in axes)

    def coordinates(self, rank: int, view: Sequence[str] = AXES) -> dict[str, int]:
        """Where a rank stands along each axis of a view: `AXES`, or `FOLDED` for layers of experts."""
        found = {}
        for axis in reversed(view):
            rank, found[axis] = divmod(rank, getattr(self, axis))
        return found

    def index(self, rank: int, *axes: str) -> int:
        """The place of a rank among those that differ from it along these axes alone; the last axis counts fastest."""
        place, found = self.coordinates(rank, view_of(axes)), 0
        for axis in axes:
            found = found * getattr(self, axis) + place[axis]
        return found

    def members(self, rank: int, *axes: str) -> list[int]:
        """The ranks that differ from this one along these axes alone, itself included, by their index."""
        view = view_of(axes)
        here, found = self.coordinates(rank, view), []
        for place in itertools.product(*(range(getattr(self, axis)) for axis in axes)):
            other, there = 0, here | dict(zip(axes, place, strict=True))
            for axis in view:
                other = other * getattr(self, axis) + there[axis]
            found.append(other)
        return found

    def plain(self) -> dict[str, int]:
        """The sizes by axis, as JSON and TOML can hold them."""
        return asdict(self)

    def describe(self) -> str:
        """The axes longer than 1, for people: "data 2 x tensor 4"."""
        return " x ".join(f"{name} {count}" for name, count in asdict(self).items() if count > 1) or "one process"


def view_of(axes: Sequence[str]) -> tuple[str, ...]:
    """The view whose axes these are."""
    view = next((view for view in (AXES, FOLDED) if all(axis in view for axis in axes)), None)
    if view is None:
        raise ValueError(f"{axes} belong to no one view of the mesh: {AXES} or {FOLDED}")
    return view


class World:
    """A mesh with processes behind it: which rank this is, and the groups it works in.

    With one process there is no process group, every group is None and every reduction the identity. Groups are made when first
    asked for, which all their members must do in the same order.

    Args:
        mesh: the sizes.

    Raises:
        RecipeError: the number of processes that were started is another than the mesh's.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        self.mesh = mesh or Mesh()
        self.rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._groups: dict[tuple[str, ...], dist.ProcessGroup | None] = {}
        if ranks != self.mesh.ranks:
            problem = f"{self.mesh.describe()} takes {self.mesh.ranks} processes, and {ranks} were started"
            raise RecipeError(problem, key="mesh", mend=f"start {self.mesh.ranks}, or change the mesh")

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.mesh.ranks == 1

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all: it alone writes metrics, progress and the finished model."""
        return self.rank == 0

    def index(self, *axes: str) -> int:
        """This rank's place along these axes."""
        return self.mesh.index(self.rank, *axes)

    def count(self, *axes: str) -> int:
        """Ranks along these axes."""
        return self.mesh.count(*axes)

    def group(self, *axes: str) -> Any:
        """The process group of the ranks that differ from this one along these axes alone; None when that is only itself."""
        axes = tuple(axis for axis in axes if self.mesh.count(axis) > 1)
        if not axes:
            return None
        if axes not in self._groups:
            members = self.mesh.members(self.rank, *axes)
            whole = len(members) == self.mesh.ranks and members == sorted(members)
            self._groups[axes] = dist.group.WORLD if whole else dist.new_group(members, timeout=TIMEOUT, use_local_synchronization=True)
        return self._groups[axes]

    def pair(self, places: list[int]) -> Any:
        """The process group of the ranks at these places of the pipe axis, of which this rank is one."""
        along = self.mesh.members(self.rank, "pipe")
        return self.among(f"pipe {places}", [along[place] for place in places])

    def among(self, name: str, members: list[int]) -> Any:
        """The process group of some ranks, of which this is one, under a name of its own; None when that is only itself."""
        if len(members) > 1 and (name,) not in self._groups:
            self._groups[name,] = dist.new_group(members, timeout=TIMEOUT, use_local_synchronization=True)
        return self._groups.get((name,))

    def sum(self, values: Tensor, *axes: str) -> Tensor:
        """Adds up `values` over the ranks along these axes, in place."""
        group = self.group(*axes)
        if group is not None:
            dist.all_reduce(values, group=group)
        return values

    def agree(self, value: float) -> float:
        """Rank 0's value, on every rank: for what each rank sees otherwise, such as the clock."""
        if self.alone:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=device.device())
        dist.broadcast(held, src=0)
        return float(held)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        if self.alone:
            return flag
        held = torch.tensor(int(flag), device=device.device())
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return bool(held)

    def joined(self, values: list[Any], *axes: str) -> list[Any]:
        """The lists of all ranks along these axes, one after the other."""
        group = self.group(*axes)
        if group is None:
            return values
        lists: list[Any] = [None] * group.size()
        dist.all_gather_object(lists, values, group=group)
        return [value for each in lists for value in each]

    def barrier(self) -> None:
        """Waits for every rank."""
        if not self.alone:
            dist.barrier()

    @cached_property
    def parameters(self) -> DeviceMesh:
        """(pipe, replica, shard, tensor): what DTensors of ordinary layers lie on; `shard` is data x context."""
        sizes = (self.mesh.pipe, self.mesh.replica, self.mesh.data * self.mesh.context, self.mesh.tensor)
        return self._device_mesh(sizes, ("pipe", "replica", "shard", "tensor"))

    @cached_property
    def experts(self) -> DeviceMesh:
        """(pipe, replica, shard, expert, expert_tensor): what DTensors of experts lie on."""
        sizes = tuple(self.mesh.count(axis) for axis in FOLDED)
        return self._device_mesh(sizes, ("pipe", "replica", "shard", "expert", "expert_tensor"))

    def _device_mesh(self, sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
        ranks = torch.arange(self.mesh.ranks).view(sizes)
        return DeviceMesh(device.device().type, ranks, mesh_dim_names=names)


def join() -> None:
    """Joins the processes that a launcher started (torchrun's variables RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(device.collectives(), timeout=TIMEOUT)


def leave() -> None:
    """Gives the process groups back."""
    if dist.is_initialized():
        dist.destroy_process_group()
