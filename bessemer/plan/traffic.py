"""What ranks send each other: a listener that writes down every collective of this process, real or on fake ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bessemer.core.mesh import World

KINDS = {
    "allreduce_": "all-reduce", "all_reduce": "all-reduce", "all_reduce_": "all-reduce", "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather", "all_gather_into_tensor_out": "all-gather", "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter", "reduce_scatter_tensor": "reduce-scatter", "alltoall_base_": "all-to-all",
    "all_to_all_single": "all-to-all", "send": "send", "broadcast_": "broadcast", "broadcast": "broadcast",
}  # fmt: skip
"""torch's operators by the names people use; receiving is the other end of sending and not counted again."""


@dataclass
class Traffic:
    """The collectives of one kind over one group of ranks.

    Attributes:
        kind: all-reduce, all-gather, reduce-scatter, all-to-all, send, broadcast.
        axes: along which axes of the mesh the group lies.
        ranks: of the group.
        calls: how many there were.
        bytes: what this rank sends in them, by a ring where there is a choice: (n - 1) / n of the whole for all-gather and
            reduce-scatter, twice that for all-reduce, all but its own part for all-to-all.
    """

    kind: str
    axes: str
    ranks: int
    calls: int = 0
    bytes: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"kind": self.kind, "axes": self.axes, "ranks": self.ranks, "calls": self.calls, "bytes": round(self.bytes)}


class Listener(TorchDispatchMode):
    """Writes down the collectives of the code it surrounds, by kind and group.

    Args:
        world: tells which axes a group lies along; groups it doesn't know are called by their ranks.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.found: dict[tuple[str, str], Traffic] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function.namespace in ("c10d", "_c10d_functional"):
            kind = KINDS.get(function._opname)
            if kind is not None:
                self._note(kind, arguments, result)
        return result

    def traffic(self) -> list[Traffic]:
        """What was heard, in the order it first was."""
        return list(self.found.values())

    def _note(self, kind: str, arguments: Any, result: Any) -> None:
        group = _group(arguments)
        size = group.size()
        if size == 1:
            return
        row = self.found.setdefault((kind, group.group_name), Traffic(kind, self._axes(group), size))
        row.calls += 1
        row.bytes += _sent(kind, size, arguments, result)

    def _axes(self, group: Any) -> str:
        names: dict[str, str] = {}
        for view, data in (("parameters", "shard"), ("experts", "expert_data")):
            mesh: Any = self.world.__dict__.get(view)
            for name in mesh.mesh_dim_names if mesh is not None else ():
                names.setdefault(mesh.get_group(name).group_name, data if name == "shard" else name)
        for axes, made in self.world._groups.items():
            if made is not None:
                names.setdefault(made.group_name, " x ".join(axes))
        return names.get(group.group_name, "all" if size_of_all(group) else "some")


def size_of_all(group: Any) -> bool:
    """Whether a group is of all ranks."""
    return group.size() == dist.get_world_size()


def _group(arguments: Any) -> Any:
    for each in arguments:
        if isinstance(each, str) and each not in ("sum", "max", "min", "avg"):
            return dist.distributed_c10d._resolve_process_group(each)  # type: ignore[arg-type]
        if hasattr(each, "_type") and "ProcessGroup" in str(each._type()):
            return dist.ProcessGroup.unbox(each)
    raise RuntimeError("a collective without a group")


def _tensors(value: Any) -> Iterator[Tensor]:
    return (each for each in tree_iter(value) if isinstance(each, Tensor))


def _bytes(values: Any) -> int:
    return sum(each.numel() * each.element_size() for each in _tensors(values))


def _sent(kind: str, size: int, arguments: Any, result: Any) -> float:
    share = (size - 1) / size
    sizes = [_bytes(each) for each in arguments if any(True for _ in _tensors(each))]
    if kind == "all-gather":
        return max([*sizes, _bytes(result)]) * share
    if kind == "all-reduce":
        return 2 * sizes[0] * share
    if kind == "reduce-scatter":
        return max(sizes) * share
    if kind == "all-to-all":
        return sizes[-1] * share
    return float(sizes[0])
