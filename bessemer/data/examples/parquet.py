"""Pictures in Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from bessemer.core.errors import DataError, neighbours
from bessemer.data.example import Example, Unreadable
from bessemer.data.examples._decode import Undecodable, decode
from bessemer.data.sources._files import expand


def parquet(
    *, files: list[str], picture: str = "image", text: str | None = None, labels: list[str] = [], label: str = "parquet", limit: int | None = None
) -> Iterator[Example | Unreadable]:
    """One example a row: a column of encoded pictures, as bytes or as a table with `bytes` (how `datasets` writes them).

    Args:
        files: files, folders (searched for .parquet) and globs.
        picture: the column of the pictures.
        text: the column of the captions, if there is one.
        labels: columns to keep as labels.
        label: the source's name.
        limit: take only so many rows.

    Raises:
        DataError: a file is missing, truncated or no Parquet, or lacks a column.
    """
    columns = list(dict.fromkeys([picture, *([text] if text else []), *labels]))
    taken = 0
    for path, name in expand(files, (".parquet",), (0, 1)):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                for column in columns:
                    if column not in file.schema_arrow.names:
                        raise DataError(f"there is no column '{column}'", file=path, key=column, mend=neighbours(column, file.schema_arrow.names))
                batches = file.iter_batches(batch_size=64, columns=columns, use_threads=False)
                for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                    if limit is not None and taken >= limit:
                        return
                    taken += 1
                    yield example_of(row, picture, text, labels, label, f"{name}:{number}")
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"can't be read as Parquet: {str(error).splitlines()[0]}", file=path, mend="fetch or write it again") from None


def example_of(row: dict[str, Any], picture: str, text: str | None, labels: list[str], label: str, where: str) -> Example | Unreadable:
    """An example from a row whose picture is encoded bytes, or a table that holds them under `bytes`."""
    content = row.get(picture)
    content = content.get("bytes") if isinstance(content, dict) else content
    if not isinstance(content, bytes):
        return Unreadable(f"its '{picture}' holds no picture", where)
    try:
        found = decode(content)
    except Undecodable as error:
        return Unreadable(str(error), where)
    facts = {name: str(row[name]) for name in labels if row.get(name) is not None}
    return Example({"picture": found}, str(row.get(text) or "") if text else "", facts, label, where)
