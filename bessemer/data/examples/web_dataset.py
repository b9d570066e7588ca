"""Pictures in tar archives."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from bessemer.core.errors import DataError
from bessemer.data.example import Example, Unreadable
from bessemer.data.examples._decode import ENDINGS, Undecodable, decode


def web_dataset(*, files: list[str], label: str = "web_dataset", limit: int | None = None) -> Iterator[Example | Unreadable]:
    """Samples of WebDataset tars: members of one name belong together (img.jpg, img.txt, img.json, img.cls) (Aizman et al. 2019).

    The caption is the .txt, or "caption" or "text" of the .json; the .cls and the other plain values of the .json are labels.
    Nothing is unpacked to disk.

    Args:
        files: tars and globs, read in order.
        label: the source's name.
        limit: take only so many samples.

    Raises:
        DataError: a file is missing or is no whole tar.
    """
    taken = 0
    for file in _expanded(files):
        for name, members in _samples(file):
            if limit is not None and taken >= limit:
                return
            taken += 1
            yield _example(name, members, label, f"{file.name}:{name}")


def _expanded(files: list[str]) -> list[Path]:
    found: list[Path] = []
    for given in files:
        here = [Path(name) for name in sorted(glob(given, recursive=True))] if any(mark in given for mark in "*?[") else [Path(given)]
        if not here or not all(path.is_file() for path in here):
            raise DataError("there is no such file", file=given, key="files")
        found += here
    return found


def _samples(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each sample's name and its members by ending; members of a sample stand next to each other."""
    name = ""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, _, ending = member.name.rpartition("/")[2].partition(".")
                full = f"{member.name.rpartition('/')[0]}/{stem}".lstrip("/")
                if full != name and members:
                    yield name, members
                    members = {}
                content = archive.extractfile(member)
                name = full
                members[f".{ending.lower()}"] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"is no whole tar: {error}", file=file, mend="fetch or write it again") from None
    if members:
        yield name, members


def _example(name: str, members: dict[str, bytes], label: str, where: str) -> Example | Unreadable:
    picture = next((members[ending] for ending in ENDINGS if ending in members), None)
    if picture is None:
        return Unreadable("the sample has no picture", where)
    try:
        facts: dict[str, Any] = json.loads(members[".json"]) if ".json" in members else {}
        if not isinstance(facts, dict):
            return Unreadable("its .json is no table", where)
        text = members[".txt"].decode() if ".txt" in members else str(facts.get("caption") or facts.get("text") or "")
        labels = {key: str(value) for key, value in facts.items() if isinstance(value, str | int | bool) and key not in ("caption", "text")}
        if ".cls" in members:
            labels["cls"] = members[".cls"].decode().strip()
        return Example({"picture": decode(picture)}, text.strip(), labels, label, name)
    except (Undecodable, UnicodeDecodeError, ValueError) as error:
        return Unreadable(str(error), where)
