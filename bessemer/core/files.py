"""Writing so that a kill, a full disk or a second reader never sees half a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from bessemer.core.errors import ArtifactError, BessemerError


def write(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all: into a neighbour first, synced, then renamed over `path`.

    Raises:
        BessemerError: the disk is full or the folder can't be written; nothing was changed.
    """
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        ArtifactError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError("there is no such file", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"can't be read: {error}", file=path) from None
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"is not whole JSON (line {error.lineno}: {error.msg})", file=path, mend="restore the file, or delete its folder to make it again"
        ) from None


def checksum(path: Path) -> str:
    """xxh3-128 of a file, in hex; reads at the disk's speed."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def replace_folder(made: Path, place: Path) -> None:
    """Puts a finished folder in its place; what stood there goes only after the new one is complete."""
    old = place.with_name(f".{place.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(made, place)
    except BaseException:
        if old.exists():
            os.replace(old, place)
        raise
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and the like into a clear error that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path)).free / 1e6
            raise BessemerError(
                f"the disk is full ({free:.0f} MB free); nothing was overwritten",
                file=path,
                mend="free space or choose another folder with --out, then give the same command again",
            ) from error
        refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
        if error.errno in refused or (error.errno == errno.ENOENT and _leads_to(error.filename, path)):
            raise BessemerError(f"can't be written: {os.strerror(error.errno)}", file=path, mend="choose another folder with --out") from error
        raise


def _leads_to(name: str | None, path: Path) -> bool:
    """Whether what could not be made is `path`, a folder above it, or a neighbour: some file systems, as /proc, have no place for them."""
    place, path = Path(name or "").absolute(), path.absolute()
    return name is not None and (place.parent == path.parent or place in path.parents)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
