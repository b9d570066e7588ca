"""Plain text from files, folders and globs."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from bessemer.core.errors import DataError
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part, expand, first_problem, opened, stop_or_skip

CHUNK = 4 << 20
WHOLE = 256 << 20


def text(
    part: Part = (0, 1),
    *,
    files: list[str],
    separator: str | None = None,
    encoding: str = "utf-8",
    bad: Literal["stop", "skip"] = "skip",
    label: str = "text",
    domain: str = "text",
    endings: list[str] = [".txt", ".md", ".rst"],
) -> Iterator[Document | Skipped]:
    """Plain text from files, folders and globs, one document a file or cut at a separator.

    Args:
        part: (index, of): which share of the files to read.
        files: files, folders (searched for `endings`) and globs; .gz, .zst and .bz2 are unpacked.
        separator: what stands between documents in a file, such as "<|endoftext|>" or "\\n\\n\\n".
        encoding: of the files; a byte order mark overrules it.
        bad: what to do with binary, mis-encoded and empty files: pass over and count them, or stop.
        label: the source's name in the corpus.
        domain: the domain of its documents.
        endings: which files of a folder are text.

    Raises:
        DataError: a file is missing or can't be read; the encoding is unknown; `bad = "stop"` and a file is bad.
    """
    if separator == "":
        raise DataError("an empty separator cuts nothing", key="separator", mend="leave it out for one document a file")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(f"there is no encoding '{encoding}'", key="encoding", mend="for example utf-8, latin-1, cp1252") from None
    complain = stop_or_skip(bad)
    for path, name in expand(files, endings, part):
        number = 0
        try:
            with opened(path) as stream:
                for number, piece in enumerate(_pieces(stream, path, separator, encoding)):
                    yield Document(piece, label, domain, f"{name}#{number}" if separator else name)
        except _BadError as problem:
            complain(f"is {problem}", path, f'bad = "skip" passes over such files; encoding = "..." says how they are written ({encoding} now)')
            yield Skipped(str(problem).split(":")[0], f"{name} after document {number}" if number else name)


class _BadError(Exception):
    """A file that is no text in the encoding it should have."""


def _pieces(stream: BinaryIO, path: Path, separator: str | None, encoding: str) -> Iterator[str]:
    """The documents of one file, holding a chunk and a document at a time."""
    head = stream.read(CHUNK)
    problem = first_problem(head)
    if problem or not head.strip():
        raise _BadError(problem or "empty")
    decoder = codecs.getincrementaldecoder(_marked(head) or encoding)()
    held, offset, some = "", 0, False
    while head:
        try:
            held += decoder.decode(head)
        except UnicodeDecodeError as error:
            raise _BadError(f"mis-encoded: no {error.encoding} at about byte {offset + error.start}") from None
        offset += len(head)
        if separator is not None:
            *whole, held = held.split(separator)
            for piece in whole:
                if piece.strip():
                    some = True
                    yield _lines(piece)
        if len(held) > WHOLE:
            raise DataError(f"holds a document of more than {WHOLE >> 20} MB", file=path, mend="set separator to what stands between documents")
        head = stream.read(CHUNK)
    try:
        held += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _BadError(f"mis-encoded: no {error.encoding} at its end") from None
    if held.strip():
        yield _lines(held)
    elif not some:
        raise _BadError("empty")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _marked(head: bytes) -> str | None:
    """The encoding a byte order mark announces."""
    for mark, name in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if head.startswith(mark):
            return name
    return None
