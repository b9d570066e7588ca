"""Texts as word hashes, for whole batches at once on the UTF-8 bytes, without making a Python string of any."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy
import pyarrow

Array = numpy.ndarray[Any, Any]
U64 = numpy.uint64
CHUNK = 1 << 17
"""Bytes hashed at once, so that what is made of them stays in the second-level cache."""
BASE = 0x9E3779B97F4A7C15
BASE_INVERSE = pow(BASE, -1, 1 << 64)


def buffers(texts: pyarrow.Array) -> tuple[Array, Array]:
    """The UTF-8 bytes of a string array, uint8 [bytes], and where each text begins and ends, int64 [documents + 1]."""
    if isinstance(texts, pyarrow.ChunkedArray):
        texts = texts.combine_chunks()
    _, places, data = texts.buffers()
    width = numpy.int64 if pyarrow.types.is_large_string(texts.type) else numpy.int32
    offsets = numpy.frombuffer(places, dtype=width)[texts.offset : texts.offset + len(texts) + 1].astype(numpy.int64)
    whole = numpy.frombuffer(data, dtype=numpy.uint8) if data is not None and data.size else numpy.zeros(0, numpy.uint8)
    return whole[offsets[0] : offsets[-1]], offsets - offsets[0]


def _byte_values() -> Array:
    """A random 64-bit number for every byte that belongs to words, capital letters like small ones; 0 for the others."""
    values = numpy.zeros(256, dtype=U64)
    for byte in range(256):
        character = chr(byte)
        if byte >= 0x80 or character.isalnum():
            values[byte] = mix_integer(ord(character.lower()) if byte < 0x80 else byte)
    return values


def mix_integer(x: int) -> int:
    """One number of splitmix64 (Steele et al. 2014), never 0 in use here."""
    x = (x + BASE) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return x ^ (x >> 31)


VALUES = _byte_values()
IS_WORD = VALUES != 0
ALONE = numpy.zeros(256, dtype=bool)
ALONE[0xE3:0xEE] = True  # these begin the characters of East Asian scripts, which put no blanks between words


def word_hashes(texts: pyarrow.Array) -> tuple[Array, Array]:
    """The words of every text, as hashes.

    A word is a run of ASCII letters and digits, without regard to case, and of any other than ASCII characters; one of
    East Asian scripts stands alone. The hash of bytes b_0..b_n is the sum of VALUES[b_i] * BASE**i modulo 2**64.

    Args:
        texts: string array [documents].

    Returns:
        uint64 [words], all texts' in order; int64 [documents + 1], where each text's words begin and end.
    """
    data, offsets = buffers(texts)
    starts_of_texts = numpy.zeros(len(data) + 1, dtype=bool)
    starts_of_texts[offsets] = True
    hashes, places = [], []
    begin = 0
    while begin < len(data):
        end = _cut(data, begin, starts_of_texts)
        piece = data[begin:end]
        word = IS_WORD[piece]
        starting = word.copy()
        starting[1:] &= ~word[:-1] | starts_of_texts[begin + 1 : end]
        starting |= ALONE[piece]
        starts = numpy.flatnonzero(starting)
        if len(starts):
            powers, inverses = _powers(1 << (len(piece) - 1).bit_length())
            values = VALUES[piece]
            values *= powers[: len(piece)]
            sums = numpy.add.reduceat(values, starts)
            sums *= inverses[starts]
            hashes.append(sums)
            places.append(starts + begin)
        begin = end
    if not hashes:
        return numpy.zeros(0, U64), numpy.zeros(len(offsets), numpy.int64)
    return numpy.concatenate(hashes), numpy.searchsorted(numpy.concatenate(places), offsets)


def _cut(data: Array, begin: int, starts_of_texts: Array) -> int:
    """Where a chunk may end so that no word is cut."""
    size = CHUNK
    while begin + size < len(data):
        window = data[begin + size // 2 : begin + size]
        ends = numpy.flatnonzero(~IS_WORD[window] | starts_of_texts[begin + size // 2 : begin + size])
        if len(ends):
            return begin + size // 2 + int(ends[-1])
        size *= 2
    return len(data)


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[Array, Array]:
    """BASE**i and its inverse modulo 2**64, for i below `size`."""
    forward, backward = numpy.full(size, BASE, U64), numpy.full(size, BASE_INVERSE, U64)
    forward[0] = backward[0] = 1
    return numpy.multiply.accumulate(forward), numpy.multiply.accumulate(backward)


def mix(x: Array) -> Array:
    """The finish of splitmix64, on a uint64 array: every bit of the input moves every bit of the result."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))
