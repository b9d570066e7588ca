"""Tensors in safetensors files, one or sharded with an index: read lazily, written atomically, never unpickled."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bessemer.core import files
from bessemer.core.errors import ArtifactError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 << 30


class Weights:
    """The tensors of a folder by name, read only when asked for.

    Raises:
        ArtifactError: there are none, a shard is missing, or a file is truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        if (folder / INDEX).is_file():
            self._read_index()
        elif (folder / SINGLE).is_file():
            self._add(folder / SINGLE)
        else:
            raise self._nothing()

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.places[name].get_tensor(name)
        except SafetensorError as error:
            raise ArtifactError(f"can't be read: {error}", file=self._files[name], key=name) from None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.places[name].get_slice(name).get_shape())

    def file_of(self, name: str) -> Path:
        return self._files[name]

    def _read_index(self) -> None:
        index = files.read_json(self.folder / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(where, dict) or not all(isinstance(value, str) for value in where.values()):
            raise ArtifactError("has no table of tensors and their files", file=self.folder / INDEX, key="weight_map")
        shards = sorted(set(where.values()))
        missing = [shard for shard in shards if not (self.folder / shard).is_file()]
        if missing:
            raise ArtifactError(
                f"the index names {len(shards)} shards, and missing {'is' if len(missing) == 1 else 'are'} {', '.join(missing[:4])}",
                file=self.folder / INDEX,
                mend="copy the missing files beside it",
            )
        for shard in shards:
            self._add(self.folder / shard)
        for name, shard in where.items():
            if name not in self.places:
                raise ArtifactError(f"the index says this tensor is in {shard}, and it is not", file=self.folder / shard, key=name)

    def _add(self, path: Path) -> None:
        try:
            opened = safe_open(path, framework="pt")
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"is no whole safetensors file ({error})", file=path, mend="it was truncated or altered: copy or make it again"
            ) from None
        for name in names:
            self.places[name] = opened
            self._files[name] = path

    def _nothing(self) -> ArtifactError:
        pickled = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(path.name for path in self.folder.glob("*.pt*"))
        if pickled:
            return ArtifactError(
                f"holds only pickled weights ({pickled[0]}), which can run code when read",
                file=self.folder,
                mend="convert them to safetensors, for example with transformers' save_pretrained where you trust them",
            )
        return ArtifactError(f"has neither {SINGLE} nor {INDEX}", file=self.folder, mend="name the folder the weights are in")


def save(tensors: dict[str, Tensor | Callable[[], Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Writes tensors into `folder`, in one file or in shards of at most `shard_bytes` with an index.

    Args:
        tensors: by name; a function is called when its shard is written, so the whole need not be in memory twice.

    Returns:
        The files written, the index last.
    """
    sizes = {name: _bytes(value() if callable(value) else value) for name, value in tensors.items()}
    shards = _cut(sizes, shard_bytes)
    single = len(shards) == 1
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    written = []
    for number, names in enumerate(shards, start=1):
        file = SINGLE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        found = {name: tensors[name] for name in names}
        _write({name: value() if callable(value) else value for name, value in found.items()}, folder / file)
        where |= dict.fromkeys(names, file)
        written.append(folder / file)
    if not single:
        files.write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})
        written.append(folder / INDEX)
    for stale in {*folder.glob("model*.safetensors"), *folder.glob(INDEX)} - set(written):
        stale.unlink()
    return written


def _cut(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    with files.disk_errors(path):
        try:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, part, metadata={"format": "pt"})
            files.sync(part)
            os.chmod(part, 0o644)
            os.replace(part, path)
        except SafetensorError as error:
            raise _as_os_error(error, part) from None
        finally:
            part.unlink(missing_ok=True)


def _as_os_error(error: SafetensorError, path: Path) -> Exception:
    """safetensors reports a full disk in words only; the code is in its message."""
    text = str(error)
    if "os error " in text:
        code = text.rsplit("os error ", 1)[1].split(")")[0]
        if code.isdigit():
            return OSError(int(code), os.strerror(int(code)), str(path))
    return ArtifactError(f"can't be written: {error}", file=path)


def _bytes(value: Tensor) -> int:
    return math.prod(value.shape) * value.element_size()


def as_dtype(name: str) -> torch.dtype | None:
    """The type called "float32", "bfloat16" or "float16"; None for "keep"."""
    return None if name == "keep" else getattr(torch, name)
