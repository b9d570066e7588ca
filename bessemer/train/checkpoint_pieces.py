"""What one rank holds of a sharded tensor, as torch's distributed checkpoint asks for it: where each run of it lies in the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from bessemer.core import shards


class Pieces(Tensor):
    """A tensor of the whole's shape that holds this rank's part of it; only checkpoints read and fill it.

    A DTensor says as much about itself, but not that a weight of stacked matrices is cut part by part, so that a rank's rows are several
    runs of the whole's.
    """

    local: Tensor
    chunks: list[tuple[ChunkStorageMetadata, tuple[int, ...]]]
    """Where each run lies in the whole, and where in `local` it begins."""

    @staticmethod
    def of(value: DTensor, parts: Sequence[int] = ()) -> Pieces:
        """This rank's part.

        Args:
            parts: rows of the matrices stacked in it, cut one by one along the tensor axis.
        """
        made: Any = Tensor._make_wrapper_subclass(Pieces, value.shape, dtype=value.dtype, device=value.device)  # type: ignore[attr-defined]
        made.local = shards.local(value.detach())
        coordinate = value.device_mesh.get_coordinate()
        assert coordinate is not None
        made.chunks = list(_chunks(shards.runs(value, coordinate, parts)))
        return made

    def to_local(self) -> Tensor:
        """This rank's part, as a plain tensor."""
        return self.local

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk, _ in self.chunks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [chunk for chunk, _ in self.chunks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        chunk, begin = next((chunk, begin) for chunk, begin in self.chunks if chunk.offsets == index.offset)
        return self.local[tuple(slice(start, start + size) for start, size in zip(begin, chunk.sizes, strict=True))]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise TypeError(f"{func} can't be computed with the pieces of a checkpoint")


def in_pieces(tensors: Mapping[str, Tensor], parts: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
    """The same with `Pieces` for DTensors.

    Args:
        parts: parameter name -> rows of the matrices stacked in it. Given, only those parameters and their state are replaced,
            None: whatever is a DTensor.
    """
    found = dict(tensors)
    for name, value in tensors.items():
        if isinstance(value, DTensor):
            cut = () if parts is None else _parts_of(name, value, parts)
            if parts is None or cut:
                found[name] = Pieces.of(value, cut)
    return found


def _parts_of(name: str, value: Tensor, parts: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """Those of the parameter that a tensor is or belongs to: "model.NAME" or "optimizer.NAME.KEY", where a key may have dots too."""
    kind, _, rest = name.partition(".")
    cut = parts.get(rest, ()) if kind == "model" else next((cut for of, cut in parts.items() if rest.startswith(f"{of}.")), ())
    return cut if cut and value.shape[shards.outputs(value)] == sum(cut) else ()


def _chunks(held: list[list[shards.Run]]) -> Iterator[tuple[ChunkStorageMetadata, tuple[int, ...]]]:
    """Runs of neighbours along every dimension, with where they begin locally."""
    for found in product(*map(shards.placed, held)):
        offsets, sizes, begin = zip(*found, strict=True) if found else ((), (), ())
        yield ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)), begin
