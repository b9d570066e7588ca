"""Exact copies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy
import pyarrow
import xxhash

from bessemer.data.select._words import IS_WORD, buffers

PLAIN = bytes(ord(chr(byte).lower()) if byte < 0x80 and IS_WORD[byte] else byte if IS_WORD[byte] else 32 for byte in range(256))


def exact(texts: pyarrow.Array, *, ignore: Literal["nothing", "blanks", "all but words"] = "blanks") -> numpy.ndarray[Any, Any]:
    """Documents with the same text, by a 64-bit hash of it (xxh3), blanks or all but words left aside.

    Args:
        texts: string array [documents].
        ignore: what makes no difference: nothing; how much and which blank space stands between words; or everything
            but letters, digits and their order, capitals like small ones (for prose, not for code).

    Returns:
        uint64 [1, documents]; 0 for a text without a word.
    """
    data, offsets = buffers(texts)
    raw = data.tobytes()
    if ignore == "all but words":
        raw = raw.translate(PLAIN)
    hash_of = xxhash.xxh3_64_intdigest
    found = []
    for begin, end in pairwise(offsets.tolist()):
        text = raw[begin:end]
        if ignore != "nothing":
            text = b" ".join(text.split())
        found.append((hash_of(text) or 1) if text else 0)
    return numpy.array([found], dtype=numpy.uint64)
