"""Finding and opening the files that a source names."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from bessemer.core.errors import DataError, neighbours

Part = tuple[int, int]
PACKED = (".gz", ".zst", ".zstd", ".bz2")


class Found(NamedTuple):
    """A file, and the name by which its documents go: relative to the folder it was found in."""

    path: Path
    name: str


def expand(patterns: Sequence[str], endings: Sequence[str], part: Part = (0, 1)) -> list[Found]:
    """The files that a list of files, folders and globs stands for, sorted by name within each, cut to one part.

    A folder gives every file below it with one of the endings (compressed ones too).

    Raises:
        DataError: a file or folder is missing, or a glob or folder holds nothing fitting.
    """
    found: list[Found] = []
    if not patterns:
        raise DataError("names no file", key="files", mend='give at least one, for example files = ["texts/*.txt"]')
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if has_magic(str(path)) and not path.exists():
            base = Path(str(path).split("*")[0].split("?")[0].split("[")[0])
            base = base if base.is_dir() else base.parent
            fitting = [Path(name) for name in sorted(glob(str(path), recursive=True))]
            here = [Found(each, each.relative_to(base).as_posix()) for each in fitting if each.is_file()]
        elif path.is_dir():
            all_endings = tuple(ending + more for ending in endings for more in ("", *PACKED))
            here = [Found(p, p.relative_to(path).as_posix()) for p in sorted(path.rglob("*")) if p.is_file() and p.name.lower().endswith(all_endings)]
        elif path.is_file():
            here = [Found(path, path.name)]
        else:
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError("there is no such file or folder", file=path, key="files", mend=neighbours(path.name, beside))
        if not here:
            problem = f"nothing fits (folders are searched for {', '.join(endings)})"
            raise DataError(problem, file=path, key="files", mend="check the path; a glob such as folder/**/*.txt names files outright")
        found += here
    index, of = part
    return found[index * len(found) // of : (index + 1) * len(found) // of]


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed by its ending (.gz, .zst, .bz2).

    Raises:
        DataError: it can't be read, or its compressed stream is broken or ends early.
    """
    packed = path.name.lower().endswith(PACKED)
    try:
        kind = "zstd" if path.suffix.lower() in (".zst", ".zstd") else "detect"
        if packed and path.stat().st_size == 0:
            raise DataError("is empty, and so no compressed file", file=path, mend="fetch or write it again")
        with pyarrow.input_stream(str(path), compression=kind, buffer_size=1 << 20) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        said = str(error).splitlines()[0]
        problem = f"its compressed stream is broken or ends early ({said})" if packed else f"can't be read: {said}"
        raise DataError(problem, file=path, mend="fetch or write it again" if packed else None) from None


def pick(row: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None if any step is missing."""
    value: Any = row
    for step in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def first_problem(raw: bytes) -> str | None:
    """Why the beginning of a file is no text, if it is not."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None  # UTF-16 with its mark
    return "binary" if b"\x00" in raw[:8192] else None


def stop_or_skip(policy: str) -> Callable[[str, Path, str], None]:
    """A function that raises for a bad file when the recipe says `bad = "stop"`, and does nothing otherwise."""

    def act(problem: str, path: Path, mend: str) -> None:
        if policy == "stop":
            raise DataError(problem, file=path, mend=mend)

    return act
