"""The embedded default: what this machine's Python brings, as code and as prose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bessemer.core.errors import DataError, neighbours
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part
from bessemer.data.sources._python import File, docstrings, installed, is_test, read_code, read_prose

Domain = Literal["code", "prose"]


def stdlib(
    part: Part = (0, 1),
    *,
    domains: list[Domain] = ["code", "prose"],
    include: list[str] | None = None,
    exclude: list[str] = ["pip", "setuptools", "pkg_resources"],
    megabytes: float | dict[Domain, float] | None = None,
    tests: bool = False,
    shortest: int = 200,
) -> Iterator[Document | Skipped]:
    """The Python sources (code) and docstrings and documentation (prose) of the standard library and installed packages.

    Needs no network and ships nothing foreign. The code and the prose of one file bear the same id, so that whoever
    splits by id keeps them together. Without a limit documents come sorted by name; with one, in an order that mixes
    packages and depends on names alone, so that a small limit is a small sample of everything.

    Args:
        part: (index, of): which share of the files to read.
        domains: which to give.
        include: only these packages ("stdlib" is the standard library); all of them by default.
        exclude: packages to leave out.
        megabytes: at most so much text for each domain, in units of 10**6 bytes.
        tests: give test files too.
        shortest: leave out documents of fewer characters.

    Raises:
        DataError: a package in `include` is not installed, or a limit is not above 0.
    """
    room = _room(domains, megabytes, part[1])
    files = [file for file in _chosen(include, exclude) if (tests or not is_test(file)) and file.place % part[1] == part[0]]
    if megabytes is not None:
        files.sort(key=lambda file: file.place)
    for file in files:
        for document in _read(file, {domain for domain in domains if room[domain] > 0}, shortest):
            if isinstance(document, Document):
                size = len(document.text.encode(errors="replace"))
                if size > room[document.domain]:  # a shorter one may still fit, but the end is near
                    room[document.domain] = 0
                    continue
                room[document.domain] -= size
            yield document
        if not any(left > 0 for left in room.values()):
            return


def _read(file: File, wanted: set[str], shortest: int) -> Iterator[Document | Skipped]:
    metadata = {"package": file.package}
    if file.name.endswith(".py"):
        code = read_code(file) if wanted else None
        if code is None:
            if wanted:
                yield Skipped("empty, huge, generated, minified or data", file.name)
            return
        if "code" in wanted and len(code) >= shortest:
            yield Document(code, "stdlib", "code", file.name, metadata)
        prose = docstrings(code) if "prose" in wanted else ""
    else:
        prose = (read_prose(file) or "") if "prose" in wanted else ""
    if len(prose) >= shortest:
        yield Document(prose, "stdlib", "prose", file.name, metadata)


def _room(domains: list[Domain], megabytes: float | dict[Domain, float] | None, parts: int) -> dict[str, float]:
    """Bytes each domain may still take in one part."""
    limits = {d: megabytes.get(d) if isinstance(megabytes, dict) else megabytes for d in domains}
    for domain, limit in limits.items():
        if limit is not None and limit <= 0:
            raise DataError(f"{limit} MB of {domain} hold nothing", key="megabytes", mend="give a number above 0, or leave the domain out of domains")
    return {d: float("inf") if limit is None else limit * 1e6 / parts for d, limit in limits.items()}


def _chosen(include: list[str] | None, exclude: list[str]) -> list[File]:
    files = installed()
    if include is not None:
        known = {file.package for file in files}
        for name in include:
            if name.lower() not in known:
                raise DataError(f"there is no installed package '{name}'", key="include", mend=neighbours(name.lower(), known))
        wanted = {name.lower() for name in include}
        files = [file for file in files if file.package in wanted]
    unwanted = {name.lower() for name in exclude}
    return [file for file in files if file.package not in unwanted]
