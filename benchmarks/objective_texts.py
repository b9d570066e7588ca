"""What the objectives are measured on: documents of this machine and made ones in which something is to be found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import distributions

from bessemer.core import rng
from bessemer.data.document import Document
from bessemer.data.sources.arithmetic import arithmetic
from bessemer.data.sources.stdlib import stdlib

HIDDEN = {"text": 4, "copies": 9}
"""Tokens hidden of a document. Of `copies` they are the first line, as many as UL2's denoisers hide of 61 tokens in one span."""


def text(share: float) -> Iterator[Document]:
    """Code, prose and sums, in documents of about 1,500 characters that begin where a definition or a paragraph does."""
    for each in stdlib(megabytes={"code": 2.0 * share, "prose": 1.0 * share}):
        if isinstance(each, Document):
            starts = re.split(r"\n(?=def |class |@|[A-Z])" if each.domain == "code" else r"\n\n", each.text)
            for number, part in enumerate(gathered(starts, 1500)):
                yield replace(each, text=part, id=f"{each.id}-{number}")
    yield from (each for each in arithmetic(documents=int(1500 * share), lines=6) if isinstance(each, Document))


def gathered(parts: list[str], size: int) -> Iterator[str]:
    """Neighbouring parts joined until they have so many characters."""
    held = ""
    for part in parts:
        held = f"{held}\n{part}" if held else part
        if len(held) >= size:
            yield held
            held = ""
    if held.strip():
        yield held


def few(share: float) -> Iterator[Document]:
    """A small domain of another kind: what the packages installed here say of themselves, two documents of each."""
    described = {str(each.metadata["Name"]): str(each.metadata.get_payload()) for each in distributions()}
    names = sorted(name for name, said in described.items() if len(said) > 500)
    for name in names[: max(20, round(share * len(names)))]:
        for number, part in enumerate(gathered(described[name].split("\n\n")[:60], 1500)):
            if number < 2:
                yield Document(part, "few", "few", f"{name}-{number}")


def keys(count: int) -> Iterator[Document]:
    """Eight letters with a digit each; then they are asked for in another order, and one of them again."""
    for number in range(count):
        draw = rng.numpy_generator(0, "keys", number)
        names = [chr(65 + int(n)) for n in draw.choice(26, 8, replace=False)]
        values = dict(zip(names, draw.integers(0, 10, 8).tolist(), strict=True))
        asked = [names[int(n)] for n in [*draw.permutation(8), int(draw.integers(8))]]
        yield Document("|".join("".join(f"{name}{values[name]}" for name in each) for each in (names, asked)), "keys", "keys", str(number))


LINES = 6
"""Of `copies`."""


def copies(count: int) -> Iterator[Document]:
    """A word of letters drawn anew, on several lines."""
    for number in range(count):
        letters = rng.numpy_generator(0, "copies", number).integers(97, 123, HIDDEN["copies"])
        yield Document((bytes(letters.tolist()).decode() + "\n") * LINES, "copies", "copies", str(number))
