"""Text from tokens as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from bessemer.core.errors import BessemerError


class TextStream:
    """Turns the bytes of successive tokens into text that can be shown at once.

    A character is given out when its last byte has come; bytes that are no UTF-8 become U+FFFD. Text that may be
    the beginning of a stop string is held back until it is sure. The stop string that is complete first ends the
    text, just before it, wherever tokens were cut.

    Args:
        stop: strings that end the text.

    Raises:
        BessemerError: a stop string is empty.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if any(not text for text in stop):
            raise BessemerError("a stop string is empty, so every text would end before it begins", key="stop", mend="leave it out")
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that is sure after one more token's bytes; `stopped` tells whether a stop string came."""
        return "" if self.stopped else self._sift(self._decoder.decode(piece))

    def close(self) -> str:
        """What was still held back, now that no more tokens come."""
        if self.stopped:
            return ""
        text = self._sift(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _sift(self, text: str) -> str:
        pending = self._held + text
        found = [(place + len(stop), place) for stop in self.stop if (place := pending.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return pending[: min(found)[1]]
        sure = len(pending) - self._unsure(pending)
        self._held = pending[sure:]
        return pending[:sure]

    def _unsure(self, pending: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = min(len(pending), max((len(stop) for stop in self.stop), default=1) - 1)
        return next((size for size in range(longest, 0, -1) if any(stop.startswith(pending[-size:]) for stop in self.stop)), 0)
