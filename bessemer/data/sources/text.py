"""Plain text from files, folders and globs."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO, Literal

from bessemer.core.errors import DataError
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part, expand, first_problem, opened, stop_or_skip

CHUNK = 4 << 20


def text(
    part: Part = (0, 1),
    *,
    files: list[str],
    separator: str | None = None,
    longest: int = 65_536,
    encoding: str = "utf-8",
    bad: Literal["stop", "skip"] = "skip",
    label: str = "text",
    domain: str = "text",
    endings: list[str] = [".txt", ".md", ".rst"],
) -> Iterator[Document | Skipped]:
    """Plain text from files, folders and globs, one document a file or cut at a separator; what is long is cut at blank lines.

    Args:
        part: (index, of): which share of the files to read.
        files: files, folders (searched for `endings`) and globs; .gz, .zst and .bz2 are unpacked.
        separator: what stands between documents in a file, such as "<|endoftext|>" or "\\n\\n\\n".
        longest: characters of a document; what has more, such as a book, becomes several, so that some of it can be held out.
        encoding: of the files; a byte order mark overrules it.
        bad: what to do with binary, mis-encoded and empty files: pass over and count them, or stop.
        label: the source's name in the corpus.
        domain: the domain of its documents.
        endings: which files of a folder are text.

    Raises:
        DataError: a file is missing or can't be read; the encoding is unknown; `bad = "stop"` and a file is bad; `longest` is not positive.
    """
    if longest < 1:
        raise DataError(f"documents of at most {longest} characters hold nothing", key="longest", mend="make it 1 or more; leave it out for 65,536")
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
                for number, piece in enumerate(_pieces(stream, separator, longest, encoding)):
                    yield Document(piece, label, domain, f"{name}#{number}" if separator or number else name)
        except _BadError as problem:
            complain(f"is {problem}", path, f'bad = "skip" passes over such files; encoding = "..." says how they are written ({encoding} now)')
            yield Skipped(str(problem).split(":")[0], f"{name} after document {number}" if number else name)


class _BadError(Exception):
    """A file that is no text in the encoding it should have."""


def _pieces(stream: BinaryIO, separator: str | None, longest: int, encoding: str) -> Iterator[str]:
    """The documents of one file, holding a chunk and a document at a time."""
    head = stream.read(CHUNK)
    problem = first_problem(head)
    if problem or not head.strip():
        raise _BadError(problem or "empty")
    decoder = codecs.getincrementaldecoder(_marked(head) or encoding)()
    held, offset, some = "", 0, False
    back = len(separator) - 1 if separator else 0  # a separator may have begun there
    while True:
        try:
            held += decoder.decode(head, final=not head)
        except UnicodeDecodeError as error:
            place = f"about byte {offset + error.start}" if head else "its end"
            raise _BadError(f"mis-encoded: no {error.encoding} at {place}") from None
        offset += len(head)
        *whole, held = held.split(separator) if separator is not None else [held]
        pieces = [part for document in whole for part in _cut(document, longest)]
        if head:
            *more, rest = _cut(held[: len(held) - back], longest)
            held = rest + held[len(held) - back :]
        else:
            more = _cut(held, longest)
        for piece in (*pieces, *more):
            if piece.strip():
                some = True
                yield piece.replace("\r\n", "\n")
        if not head:
            break
        head = stream.read(CHUNK)
    if not some:
        raise _BadError("empty")


def _cut(text: str, longest: int) -> list[str]:
    """The text in parts of at most so many characters, cut where a blank line is, or a line ends, in the latter half of a part."""
    parts, start = [], 0
    while len(text) - start > longest:
        least, most = start + longest // 2, start + longest
        stop = text.rfind("\n\n", least, most) + 2
        stop = stop if stop > 1 else text.rfind("\n", least, most) + 1 or most
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]


def _marked(head: bytes) -> str | None:
    """The encoding a byte order mark announces."""
    for mark, name in ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if head.startswith(mark):
            return name
    return None
