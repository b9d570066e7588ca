"""A document: one piece of text and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class Document:
    """What sources yield and cleaning rules look at.

    Attributes:
        text: the text itself.
        source: the name of the source it came from.
        domain: what sort of text it is; mixtures and held-out figures go by it.
        id: names the document within its source, the same each time it is read.
        metadata: anything else, as plain JSON values.
    """

    text: str
    source: str = "text"
    domain: str = "text"
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def with_text(self, text: str) -> Document:
        """The same document with another text."""
        return self if text == self.text else replace(self, text=text)


@dataclass(slots=True, frozen=True)
class Skipped:
    """What a source yields in place of a document it had to pass over; the collect stage counts these by reason.

    Attributes:
        reason: why, in words that are the same for all of a sort.
        where: which file, line or row.
    """

    reason: str
    where: str = ""
