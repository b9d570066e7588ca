"""Documents from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from bessemer.core.errors import DataError, neighbours
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part, expand


def parquet(
    part: Part = (0, 1),
    *,
    files: list[str],
    text: str = "text",
    id: str | None = None,
    metadata: list[str] = [],
    domain: str = "text",
    domain_key: str | None = None,
    label: str = "parquet",
) -> Iterator[Document | Skipped]:
    """One document a row of Parquet files, read a batch at a time.

    Args:
        part: (index, of): which share of the files to read.
        files: files, folders (searched for .parquet) and globs.
        text: the column of the text.
        id: the column of the document's name; file and row number otherwise.
        metadata: columns to keep.
        domain: the domain of documents whose row names none.
        domain_key: the column that names a document's domain.
        label: the source's name in the corpus.

    Raises:
        DataError: a file is missing, truncated or no Parquet, lacks a column, or the text column holds no strings.
    """
    columns = [text, *([id] if id else []), *([domain_key] if domain_key else []), *metadata]
    for path, name in expand(files, (".parquet",), part):
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                _check(file.schema_arrow, columns, text, str(path))
                batches = file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(columns)), use_threads=False)
                for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                    if not row[text]:
                        yield Skipped("empty", f"{name}:{number}")
                        continue
                    where = row[domain_key] if domain_key else None
                    key = row[id] if id else None
                    kept = {k: row[k] for k in metadata if row[k] is not None}
                    yield Document(row[text], label, str(where or domain), f"{name}:{number}" if key is None else str(key), kept)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't be read as Parquet: {str(error).splitlines()[0]}", file=path, mend="fetch or write it again") from None


def _check(schema: pyarrow.Schema, columns: list[str], text: str, path: str) -> None:
    for column in columns:
        if column not in schema.names:
            mend = neighbours(column, schema.names) or f"its columns are {', '.join(schema.names)}"
            raise DataError(f"there is no column '{column}'", file=path, key=column, mend=mend)
    kind = schema.field(text).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_dictionary(kind)):
        raise DataError(f"the text column holds {kind}, and strings are wanted", file=path, key=text)
