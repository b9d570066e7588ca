"""Examples for tasks, from local JSONL files, checked line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bessemer.core.errors import DataError

T = TypeVar("T")


def read_examples(file: str | Path, parse: Callable[[dict[str, Any]], T], limit: int | None = None) -> list[T]:
    """The examples in a JSONL file, one JSON table a line; empty lines are passed over.

    Args:
        file: the path.
        parse: makes an example of a table, or raises ValueError saying what is wrong with it.
        limit: take only so many.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is no JSON table or lacks something; with its number.
    """
    path = Path(file)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", file=path) from None
    found: list[T] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and len(found) >= limit:
            break
        found.append(_parse(line, parse, path, number))
    if not found:
        raise DataError("holds no example", file=path, mend="give one JSON table a line")
    return found


def text_of(table: dict[str, Any], column: str) -> str:
    """A column that must hold text.

    Raises:
        ValueError: it is missing or holds something else.
    """
    if column not in table:
        raise ValueError(f"has no '{column}'; it has {', '.join(map(repr, table)) or 'nothing'}")
    value = table[column]
    if not isinstance(value, str):
        raise ValueError(f"'{column}' must be text, and it is {value!r}")
    return value


def _parse(line: bytes, parse: Callable[[dict[str, Any]], T], path: Path, number: int) -> T:
    key = f"line {number}"
    try:
        table = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start})", file=path, key=key, mend="save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"is no JSON: {error}", file=path, key=key, mend="write one JSON table a line") from None
    if not isinstance(table, dict):
        raise DataError(f"is no JSON table but {table!r:.60}", file=path, key=key, mend="write one JSON table a line")
    try:
        return parse(table)
    except ValueError as error:
        raise DataError(str(error), file=path, key=key) from None
