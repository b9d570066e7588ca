"""Pictures from Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bessemer.core.errors import DataError, neighbours
from bessemer.data.example import Example, Unreadable
from bessemer.data.examples.parquet import example_of
from bessemer.data.sources.hugging_face import load


def hugging_face(
    *,
    path: str,
    config: str | None = None,
    split: str = "train",
    files: str | list[str] | None = None,
    revision: str | None = None,
    picture: str = "image",
    text: str | None = None,
    labels: list[str] = [],
    label: str | None = None,
    limit: int | None = None,
) -> Iterator[Example | Unreadable]:
    """Pictures of a dataset of the Hugging Face hub, of local files, or of a folder written by `save_to_disk`; needs `datasets`.

    Args:
        path, config, split, files, revision: which dataset, as the text source of the same name takes them.
        picture: the column of the pictures.
        text: the column of the captions, if there is one.
        labels: columns to keep as labels.
        label: the source's name; `path` otherwise.
        limit: take only so many rows.

    Raises:
        DataError: `datasets` is missing, the dataset can't be loaded, or lacks a column.
    """
    rows: Any = load(path, config, split, files, revision, False)
    for column in [picture, *([text] if text else []), *labels]:
        if column not in rows.column_names:
            raise DataError(f"there is no column '{column}'", file=path, key=column, mend=neighbours(column, rows.column_names))
    import datasets

    if isinstance(rows.features[picture], datasets.Image):
        rows = rows.cast_column(picture, datasets.Image(decode=False))
    for number in range(len(rows) if limit is None else min(limit, len(rows))):
        row = rows[number]
        content = row[picture]
        if isinstance(content, dict) and content.get("bytes") is None and content.get("path"):
            try:
                with open(content["path"], "rb") as file:
                    row[picture] = file.read()
            except OSError as error:
                yield Unreadable(str(error), f"row {number}")
                continue
        elif isinstance(content, list):
            yield _from_array(np.asarray(content), row, text, labels, label or path, number)
            continue
        yield example_of(row, picture, text, labels, label or path, f"row {number}")


def _from_array(value: Any, row: dict[str, Any], text: str | None, labels: list[str], label: str, number: int) -> Example | Unreadable:
    if value.ndim != 3 or value.shape[-1] != 3:
        return Unreadable(f"its picture has shape {list(value.shape)}", f"row {number}")
    facts = {name: str(row[name]) for name in labels if row.get(name) is not None}
    return Example({"picture": value.astype(np.uint8)}, str(row.get(text) or "") if text else "", facts, label, f"row {number}")
