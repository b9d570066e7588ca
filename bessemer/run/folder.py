"""The folder of a run: whose it is, who works in it now, and where its artifacts stand."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bessemer.core import files
from bessemer.core.errors import BessemerError

OWNER = "run.json"
LOCK = ".lock"
_held: set[Path] = set()


def default(name: str, smoke: bool) -> Path:
    """Where a recipe's run goes when no folder is given; a smoke run never mixes with a real one."""
    return Path("runs") / (f"{name}-smoke" if smoke else name)


def partial(place: Path, key: str) -> Path:
    """Where an unfinished stage works until its artifact can stand at `place`."""
    return place.with_name(f".{place.name}.{key[:8]}.partial")


def unfinished(place: Path) -> bool:
    """Whether the stage whose artifact stands at `place` has begun to make another."""
    return any(place.parent.glob(f".{place.name}.*.partial"))


@contextmanager
def claim(folder: Path, owner: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for this process alone; makes it if need be.

    Args:
        folder: the run's folder.
        owner: what must be the same for a later command to go on here: the recipe's name, whether it is a smoke run.

    Raises:
        BessemerError: the folder holds something else, another recipe's run, or a run that is going now.
    """
    check_owner(folder, owner)
    if folder.resolve() in _held:  # a process may lock again what it has locked, so this one must remember
        raise _busy(folder, os.getpid())
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, folder)
        _held.add(folder.resolve())
        if not (folder / OWNER).exists():
            files.write_json(folder / OWNER, owner | {"begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        yield
    finally:
        _held.discard(folder.resolve())
        os.close(handle)


def check_owner(folder: Path, owner: dict[str, Any]) -> None:
    """Raises unless `folder` is new, empty, or a run of the same owner. Touches nothing."""
    other = "choose another folder with --out"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BessemerError("is a file, and the run needs a folder", file=folder, mend=other)
    with files.disk_errors(folder):
        inside = {path.name for path in folder.iterdir()} - {LOCK}
    if not inside:
        return
    if OWNER not in inside:
        raise BessemerError("is not empty and not a bessemer run; nothing in it was touched", file=folder, mend=other)
    found = files.read_json(folder / OWNER)
    if not isinstance(found, dict) or "recipe" not in found:
        raise BessemerError("doesn't say whose run this is", file=folder / OWNER, mend=other)
    for key, value in owner.items():
        if found.get(key) != value:
            problem = f"belongs to the {_describe(found)}, and this is the {_describe(owner)}; nothing in it was touched"
            raise BessemerError(problem, file=folder, key=key, mend=other)


def _describe(owner: dict[str, Any]) -> str:
    what = owner.get("what", "run")
    return f"{'smoke ' if owner.get('smoke') else ''}{what} of recipe '{owner['recipe']}'"


def _lock(handle: int, folder: Path) -> None:
    """A POSIX record lock: unlike flock's, the orphaned workers of a killed run don't keep it."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        raise _busy(folder, holder or "unknown") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


def _busy(folder: Path, pid: object) -> BessemerError:
    return BessemerError(f"a run is going on here (process {pid})", file=folder, mend="wait for it, stop it, or choose another folder with --out")
