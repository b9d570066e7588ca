"""An example: what other modalities than text there are of one thing, with its caption and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Example:
    """What example sources yield.

    Attributes:
        values: by modality: "picture" uint8 [height, width, channels], "clip" uint8 [frames, height, width, channels],
            "sound" float32 [samples], "series" float32 [steps, channels]. What is absent is left out.
        text: its caption; empty if it has none.
        labels: facts about it, by name, that evaluations probe for.
        source: the name of the source it came from.
        id: names it within its source, the same each time it is read.
    """

    values: dict[str, Array]
    text: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    source: str = ""
    id: str = ""


@dataclass(slots=True, frozen=True)
class Unreadable:
    """What an example source yields in place of an item that can't be read.

    Attributes:
        reason: why, in words.
        where: which file, member or row.
    """

    reason: str
    where: str


Examples = Iterator[Example | Unreadable]
"""What a method of data/examples gives."""
