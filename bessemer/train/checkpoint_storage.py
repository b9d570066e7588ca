"""How a checkpoint's tensors lie on disk: torch's distributed checkpoint, with safetensors and JSON for its pickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from bessemer.core import files
from bessemer.core.errors import ArtifactError
from bessemer.train.checkpoint_bytes import Staging, as_bytes, step_back, write_file

INDEX = "index.json"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
NAMES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Written:
    """Where one chunk of a tensor went."""

    file: str
    begin: int
    checksum: str


class Writer(StorageWriter):
    """Writes the chunks the planner gives this rank into one safetensors file, and the index of all ranks as JSON.

    Args:
        folder: a hidden folder that is not a checkpoint yet.
        rank: this process's number in the group that saves together.
        staging: where to copy the state first; None writes straight out of the tensors.
        released: called once the tensors may change again.
        commit: called on rank 0 when all ranks have written, with the checksum of every rank's file.
    """

    def __init__(
        self, folder: Path, rank: int, staging: Staging | None, released: Callable[[], None], commit: Callable[[dict[str, str]], None]
    ) -> None:
        self.folder, self.rank, self.staging, self.released, self.commit = folder, rank, staging, released, commit

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        return None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:  # before any rank has its plan, so before any rank writes
            with files.disk_errors(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        tensors = [_resolve(planner, item) for item in plan.items]
        header, begins = _header(plan.items, tensors)
        parts: list[np.ndarray] = [np.frombuffer(header, np.uint8)]
        if self.staging:
            parts = [self.staging.copy(header, tensors)]
            self.released()
            step_back()
        else:
            parts += [as_bytes(tensor) for tensor in tensors]
        results: list[WriteResult] = []
        if plan.items:
            path = self.folder / f"rank-{self.rank:05d}.safetensors"
            checksum = write_file(path, parts)
            for item, tensor, begin in zip(plan.items, tensors, begins, strict=True):
                results.append(WriteResult(item.index, tensor.nbytes, Written(path.name, len(header) + begin, checksum)))
        self.released()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, Any] = {}
        for result in (r for rank in results for r in rank):
            entry = metadata.state_dict_metadata[result.index.fqn]
            assert isinstance(entry, TensorStorageMetadata)
            chunk = next(c for c in entry.chunks if result.index.offset is None or c.offsets == result.index.offset)
            row = tensors.setdefault(result.index.fqn, {"dtype": DTYPES[entry.properties.dtype], "shape": list(entry.size), "chunks": []})
            place = {"offsets": list(chunk.offsets), "shape": list(chunk.sizes)}
            row["chunks"].append(place | {"file": result.storage_data.file, "begin": result.storage_data.begin})
        for row in tensors.values():  # a rank left without a share of a small tensor wrote nothing of it
            row["chunks"] = [c for c in row["chunks"] if 0 not in c["shape"]] or row["chunks"][:1]
        files.write_json(self.folder / INDEX, {"tensors": dict(sorted(tensors.items()))})
        self.commit({r.storage_data.file: r.storage_data.checksum for rank in results for r in rank})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


class Reader(StorageReader):
    """Reads any part of the tensors of a checkpoint whose checksums were verified.

    Args:
        folder: the checkpoint.
        index: what `read_index` returned for it.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.index = folder, index

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        return None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found: dict[str, Any] = {}
        for name, row in self.index.items():
            chunks = [ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["shape"])) for c in row["chunks"]]
            found[name] = TensorStorageMetadata(TensorProperties(NAMES[row["dtype"]]), torch.Size(row["shape"]), chunks)
        return Metadata(found)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        return None

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        maps: dict[str, np.ndarray] = {}
        for item in plan.items:
            chunk = self._chunk(item.storage_index, maps)
            for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                chunk = chunk.narrow(axis, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(chunk)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _chunk(self, index: MetadataIndex, maps: dict[str, np.ndarray]) -> torch.Tensor:
        row = self.index[index.fqn]
        chunk = next(c for c in row["chunks"] if torch.Size(c["offsets"]) == index.offset)
        if chunk["file"] not in maps:
            maps[chunk["file"]] = np.memmap(self.folder / chunk["file"], np.uint8, mode="c")  # "c": a private view, the file stays as it is
        dtype, shape = NAMES[row["dtype"]], torch.Size(chunk["shape"])
        size = shape.numel() * dtype.itemsize
        values = torch.from_numpy(maps[chunk["file"]][chunk["begin"] : chunk["begin"] + size])
        if chunk["begin"] % dtype.itemsize:
            values = values.clone()  # a view needs its type's alignment
        return values.view(dtype).reshape(shape)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


def read_index(folder: Path, known: Iterable[str]) -> dict[str, Any]:
    """Reads which tensors a checkpoint holds: name -> {"dtype", "shape", "chunks": [{"offsets", "shape", "file", "begin"}]}.

    Args:
        known: the files whose checksums the manifest holds; a chunk may lie in no other.

    Raises:
        ArtifactError: the index is no index, or points outside its files.
    """
    path, known = folder / INDEX, set(known)
    value = files.read_json(path)
    try:
        for name, row in value["tensors"].items():
            if row["dtype"] not in NAMES or not row["chunks"]:
                raise ArtifactError(
                    f"has the type {row['dtype']!r} in {len(row['chunks'])} chunks; this version can't read that", file=path, key=name
                )
            for chunk in row["chunks"]:
                _check_chunk(folder, name, row, chunk, known)
        return value["tensors"]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ArtifactError(f"is not the index of a checkpoint ({type(error).__name__}: {error})", file=path) from None


def _resolve(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)  # `Checkpointer.save` lets nothing else in
    return tensor


def _header(items: list[WriteItem], tensors: list[torch.Tensor]) -> tuple[bytes, list[int]]:
    """The head of a safetensors file, and where each tensor begins after it; a part of a tensor is named `name@offset,offset`."""
    rows: dict[str, Any] = {}
    begins, at = [], 0
    for item, tensor in zip(items, tensors, strict=True):
        assert item.tensor_data is not None
        whole = item.tensor_data.size == item.tensor_data.chunk.sizes
        name = item.index.fqn if whole else f"{item.index.fqn}@{','.join(map(str, item.tensor_data.chunk.offsets))}"
        rows[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        begins.append(at)
        at += tensor.nbytes
    text = json.dumps(rows).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text, begins


def _check_chunk(folder: Path, name: str, row: dict[str, Any], chunk: dict[str, Any], known: set[str]) -> None:
    shape, offsets, begin = torch.Size(chunk["shape"]), torch.Size(chunk["offsets"]), chunk["begin"]
    inside = len(shape) == len(offsets) == len(row["shape"])
    inside = inside and all(min(o, s) >= 0 and o + s <= n for o, s, n in zip(offsets, shape, row["shape"], strict=True))
    if chunk["file"] not in known:
        raise ArtifactError(f"lies in {chunk['file']!r}, which the manifest doesn't list", file=folder / INDEX, key=name)
    end = begin + shape.numel() * NAMES[row["dtype"]].itemsize
    if not inside or begin < 8 or end > (folder / chunk["file"]).stat().st_size:
        raise ArtifactError("points outside its tensor or its file", file=folder / INDEX, key=name)
