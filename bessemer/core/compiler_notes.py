"""What an earlier run found out about the compiler, noted beside its cache, so that a warm start need not find it out again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def note(kind: str, *about: object) -> Path:
    """The file that says something of a kind about just this; it may not be there."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "bessemer" / f"{kind}-{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}"


def read(place: Path) -> str | None:
    """What a note says; None: it isn't there."""
    try:
        return place.read_text()
    except OSError:
        return None


def write(place: Path, text: str = "") -> None:
    """Leaves a note, whole or not at all; where that can't be, later runs find out for themselves."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, place)
    except OSError:
        return


def stamp(root: Path, ending: str) -> str:
    """Changes when a file of this ending anywhere below a folder comes, goes, or is written."""
    found, open_folders = hashlib.sha256(), [str(root)]
    while open_folders:
        with os.scandir(open_folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    open_folders += [entry.path] if entry.name != "__pycache__" else []
                elif entry.name.endswith(ending):
                    state = entry.stat()
                    found.update(f"{entry.path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return found.hexdigest()
