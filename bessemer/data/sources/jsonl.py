"""Documents from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bessemer.core.errors import DataError
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part, expand, opened, pick


def jsonl(
    part: Part = (0, 1),
    *,
    files: list[str],
    text: str = "text",
    id: str | None = None,
    metadata: list[str] = [],
    domain: str = "text",
    domain_key: str | None = None,
    label: str = "jsonl",
    broken: int = 0,
) -> Iterator[Document | Skipped]:
    """One document a line of JSON (`.jsonl`, `.ndjson`, plain or with .gz, .zst, .bz2).

    Args:
        part: (index, of): which share of the files to read.
        files: files, folders (searched for .jsonl, .ndjson, .json) and globs.
        text: the dotted key of the text.
        id: the key of the document's name; file and line number otherwise.
        metadata: keys to keep.
        domain: the domain of documents whose line names none.
        domain_key: the key that names a document's domain.
        label: the source's name in the corpus.
        broken: how many broken lines a file may have before it is an error; they are passed over and counted.

    Raises:
        DataError: naming the line: it is no JSON, has no text, and the limit is reached; or a file is missing or torn.
    """
    for path, name in expand(files, (".jsonl", ".ndjson", ".json"), part):
        wrong = 0
        with opened(path) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                row, problem = _parse(line, text)
                if problem:
                    wrong += 1
                    if wrong > broken:
                        before = f", and {wrong - 1} before it were broken too" if wrong > 1 else ""
                        mend = f"mend the line, or allow some with broken = {max(10, 2 * wrong)}"
                        raise DataError(problem + before, file=f"{path}:{number}", mend=mend)
                    yield Skipped(problem.split(" (")[0], f"{name}:{number}")
                    continue
                key = pick(row, id) if id else None
                where = pick(row, domain_key) if domain_key else None
                kept = {k: v for k in metadata if (v := pick(row, k)) is not None}
                yield Document(pick(row, text), label, str(where or domain), str(key) if key is not None else f"{name}:{number}", kept)


def _parse(line: bytes, text: str) -> tuple[dict[str, Any], str | None]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return {}, f"the line is not UTF-8 (byte {error.start})"
    except (json.JSONDecodeError, RecursionError) as error:
        return {}, f"the line is no JSON ({getattr(error, 'msg', 'nested too deep')})"
    if not isinstance(row, dict):
        return {}, "the line is no JSON object"
    value = pick(row, text)
    if value is None:
        return row, f"the line has no key '{text}' (its keys are {', '.join(map(str, list(row)[:12]))})"
    if not isinstance(value, str):
        return row, f"the value of '{text}' is no string (it is {type(value).__name__})"
    return row, None
