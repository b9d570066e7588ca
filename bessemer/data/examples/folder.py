"""Pictures in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bessemer.core.errors import DataError
from bessemer.data.example import Example, Unreadable
from bessemer.data.examples._decode import ENDINGS, Undecodable, decode


def folder(*, path: str, label: str = "folder", limit: int | None = None) -> Iterator[Example | Unreadable]:
    """Pictures in a folder and those below it; the caption is in a text file of the same name beside each, the label is the folder it is in.

    Args:
        path: the folder.
        label: the source's name.
        limit: take only so many.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    place = Path(path)
    if not place.is_dir():
        raise DataError("there is no such folder", file=place, key="path")
    found = sorted(each for each in place.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
    if not found:
        raise DataError("holds no picture", file=place, key="path", mend=f"pictures end in {', '.join(ENDINGS)}")
    for file in found[:limit]:
        name = file.relative_to(place).as_posix()
        beside = file.with_suffix(".txt")
        try:
            text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
            picture = decode(file.read_bytes())
        except (Undecodable, OSError, UnicodeDecodeError) as error:
            yield Unreadable(str(error), name)
            continue
        inside = file.parent.relative_to(place).as_posix()
        yield Example({"picture": picture}, text, {} if inside == "." else {"folder": inside}, label, name)
