"""Documents from Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bessemer.core.errors import DataError, neighbours
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part, pick


def hugging_face(
    part: Part = (0, 1),
    *,
    path: str,
    config: str | None = None,
    split: str = "train",
    files: str | list[str] | None = None,
    revision: str | None = None,
    streaming: bool = False,
    text: str = "text",
    id: str | None = None,
    metadata: list[str] = [],
    domain: str = "text",
    domain_key: str | None = None,
    label: str | None = None,
    limit: int | None = None,
) -> Iterator[Document | Skipped]:
    """A dataset of the Hugging Face hub, a folder of data files, or one written by `save_to_disk`; needs `datasets`.

    Args:
        part: (index, of): which share of the rows to read.
        path: the hub's name ("HuggingFaceFW/fineweb"), a local folder, or a builder ("json", "parquet") with `files`.
        config: the dataset's configuration.
        split: which split, such as "train" or "train[:10%]".
        files: data files for a builder.
        revision: which version of a hub dataset.
        streaming: read rows as they come in place of fetching everything first.
        text: the dotted key of the text.
        id: the key of the document's name; the row number otherwise.
        metadata: keys to keep.
        domain: the domain of documents whose row names none.
        domain_key: the key that names a document's domain.
        label: the source's name in the corpus; `path` otherwise.
        limit: at most so many rows.

    Raises:
        DataError: `datasets` is missing, the dataset can't be loaded, or has no such split or column.
    """
    rows: Any = load(path, config, split, files, revision, streaming)
    index, of = part
    if rows.features is not None and text.split(".")[0] not in rows.features:
        names = list(rows.features)
        raise DataError(f"there is no column '{text}'", file=path, key="text", mend=neighbours(text, names) or f"its columns are {', '.join(names)}")
    start = 0
    if streaming:
        rows = rows.take(limit) if limit is not None else rows
        if index:  # a stream has no places to cut it at, so the first part is all of it
            return
    else:
        size = len(rows) if limit is None else min(limit, len(rows))
        start, stop = index * size // of, (index + 1) * size // of
        rows = rows.select(range(start, stop))
    for number, row in enumerate(rows, start):
        value = pick(row, text)
        if not isinstance(value, str) or not value:
            yield Skipped("empty" if not value else f"the value of '{text}' is no string", f"row {number}")
            continue
        where = pick(row, domain_key) if domain_key else None
        key = pick(row, id) if id else None
        kept = {k: v for k in metadata if (v := pick(row, k)) is not None}
        yield Document(value, label or path, str(where or domain), str(number if key is None else key), kept)


def load(path: str, config: str | None, split: str, files: str | list[str] | None, revision: str | None, streaming: bool) -> Any:
    """The rows of a dataset, by whichever of the three ways `path` names.

    Raises:
        DataError: `datasets` is missing, or the dataset can't be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("this source needs the datasets package", key="hugging_face", mend='pip install "bessemer[hub]"') from None
    try:
        if Path(path, "dataset_info.json").is_file() or Path(path, "dataset_dict.json").is_file():
            found: Any = datasets.load_from_disk(path)
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
            return found.to_iterable_dataset() if streaming else found
        return datasets.load_dataset(path, config, data_files=files, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # its loaders raise whatever their readers raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        mend = f'check path, config and split ("{split}"); the hub needs a network'
        raise DataError(f"can't be loaded: {said[0]}", file=path, key="path", mend=mend) from None
