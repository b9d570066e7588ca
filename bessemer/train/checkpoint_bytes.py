"""Moving a state's bytes at the least cost to training: a copy in memory that is kept, and writes past the page cache."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xxhash

from bessemer.core import files
from bessemer.core.device import is_accelerator
from bessemer.core.errors import BessemerError

PAGE = mmap.PAGESIZE
BLOCK = 16 << 20
DIRECT = getattr(os, "O_DIRECT", 0)


class Staging:
    """Host memory that a state is copied into, kept from save to save because fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def reserve(self, size: int) -> np.ndarray:
        """At least `size` bytes that begin at a page, every page of them touched."""
        if self._memory.size < size:
            self._memory = np.empty(0, np.uint8)  # gives the old pages back before asking for more
            self._memory = pages(size)
            self._memory[::PAGE] = 0
        return self._memory

    def copy(self, header: bytes, tensors: list[torch.Tensor]) -> np.ndarray:
        """`header` and the bytes of each tensor, one after the other; takes one core and lets other threads run meanwhile."""
        size = len(header) + sum(t.nbytes for t in tensors)
        memory, at = self.reserve(size), len(header)
        memory[:at] = np.frombuffer(header, np.uint8)
        for tensor in tensors:
            place = memory[at : at + tensor.nbytes]
            if is_accelerator():
                torch.from_numpy(place).copy_(_flat(tensor))
            else:
                np.copyto(place, as_bytes(tensor))
            at += tensor.nbytes
        return memory[:size]


def pages(size: int) -> np.ndarray:
    """Memory that begins at a page: huge pages where the system has them, pinned where an accelerator copies into it."""
    if is_accelerator():
        memory = torch.empty(size + PAGE, dtype=torch.uint8, pin_memory=True).numpy()
        return memory[-memory.ctypes.data % PAGE :][:size]
    held = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            held.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(held, np.uint8)[:size]


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values as a flat array of bytes: its own memory where it is dense and on the host."""
    return _flat(tensor).to(torch.empty(0).device).numpy()


def write_file(path: Path, parts: list[np.ndarray]) -> str:
    """Writes arrays of bytes one after the other, synced to the disk, and returns their checksum (xxh3-128, hex).

    Through the page cache 600 MB cost 1.1 to 1.3 s of a core; past it 0.06 s, and training's own files stay cached.

    Raises:
        BessemerError: the disk is full or can't be written.
    """
    needed, free = sum(part.size for part in parts), shutil.disk_usage(path.parent).free
    if needed > free:
        problem = f"the disk is full: the checkpoint needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; the earlier ones are untouched"
        raise BessemerError(problem, file=path.parent.parent, mend="free space, then give the same command again")
    digest = xxhash.xxh3_128()
    with files.disk_errors(path):
        handle = _create(path)
        try:
            for block in _blocks(parts):
                digest.update(block.data)
                _write(handle, block)
            os.fsync(handle)
        finally:
            os.close(handle)
    return digest.hexdigest()


def step_back() -> None:
    """Lowers the priority of this thread alone, for what remains can wait and training can't."""
    if hasattr(os, "sched_getscheduler"):  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _blocks(parts: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts as blocks that begin at a page, whole pages all but the last; a single part that begins at one is not copied."""
    if len(parts) == 1 and parts[0].ctypes.data % PAGE == 0:
        yield from (parts[0][at : at + BLOCK] for at in range(0, parts[0].size, BLOCK))
        return
    buffer, filled = pages(BLOCK), 0
    for part in parts:
        at = 0
        while at < part.size:
            size = min(part.size - at, BLOCK - filled)
            np.copyto(buffer[filled : filled + size], part[at : at + size])
            at, filled = at + size, filled + size
            if filled == BLOCK:
                yield buffer
                filled = 0
    yield buffer[:filled]


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)  # a file system without direct writes


def _write(handle: int, block: np.ndarray) -> None:
    rest = block.data
    while rest:
        if len(rest) % PAGE:
            _through_cache(handle)
        try:
            rest = rest[os.write(handle, rest) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_cache(handle):
                raise


def _through_cache(handle: int) -> bool:
    """Turns direct writes off, for what is no whole page; returns whether they were on."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~DIRECT)
    return bool(flags & DIRECT)
