"""Randomness as a function: every draw is keyed by (seed, purpose, step, sample), never by what was drawn before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    import torch


def key(seed: int, purpose: str, *index: int | str) -> int:
    """A 63-bit number that depends on every argument and on nothing else."""
    text = "\x1f".join([str(seed), purpose, *(str(i) for i in index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *index: int | str) -> torch.Generator:
    """A torch generator on the host for one draw."""
    import torch  # here, since data workers need only `key`, and importing torch takes longer than many of their tasks

    return torch.Generator().manual_seed(key(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int | str) -> numpy.random.Generator:
    """A numpy generator for one draw."""
    return numpy.random.Generator(numpy.random.Philox(key=key(seed, purpose, *index)))


def uniforms(key: int, index: numpy.ndarray[Any, Any], count: int) -> numpy.ndarray[Any, Any]:
    """`count` numbers from 0 to below 1 for each index, all at once, which depend on the key and that index alone.

    Args:
        index: int64 array of any shape.

    Returns:
        float32 [*index.shape, count].
    """
    with numpy.errstate(over="ignore"):
        start = _mix(numpy.asarray(index, dtype=numpy.int64).astype(numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15) + numpy.uint64(key))
        steps = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0xD1B54A32D192ED03)
        drawn = _mix(start[..., None] + steps)
    return ((drawn >> numpy.uint64(40)).astype(numpy.float32) * numpy.float32(2.0**-24)).astype(numpy.float32)


def normals(key: int, index: numpy.ndarray[Any, Any], count: int) -> numpy.ndarray[Any, Any]:
    """`count` numbers of mean 0 and deviation 1 for each index, as `uniforms` gives them: float32 [*index.shape, count]."""
    half = -(-count // 2)
    drawn = uniforms(key, index, 2 * half)
    radius, angle = numpy.sqrt(-2.0 * numpy.log1p(-drawn[..., :half])), numpy.float32(2 * numpy.pi) * drawn[..., half:]
    both = numpy.concatenate([radius * numpy.cos(angle), radius * numpy.sin(angle)], -1)
    return both[..., :count].astype(numpy.float32)


def permute(index: numpy.ndarray[Any, Any], size: int, key: int) -> numpy.ndarray[Any, Any]:
    """Sends each index below `size` to its place in a keyed permutation of range(size), in constant memory.

    A four-round Feistel network over the next even power of two, walked until it lands inside the range
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        index: int64 array of any shape, values in [0, size).
        size: length of the permuted range, at most 2**62.
        key: from `key(...)`.
    """
    if size <= 0:
        raise ValueError("a permutation needs at least one element")
    half = numpy.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = numpy.uint64((1 << int(half)) - 1)
    rounds = [numpy.uint64((key * 0x9E3779B97F4A7C15 + r * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF) for r in range(1, 5)]
    value = numpy.asarray(index, dtype=numpy.uint64).copy()
    pending = numpy.ones(value.shape, dtype=bool)
    while pending.any():
        left, right = value[pending] >> half, value[pending] & mask
        for constant in rounds:
            left, right = right, left ^ (_mix(right + constant) & mask)
        value[pending] = (left << half) | right
        pending = value >= numpy.uint64(size)
    return value.astype(numpy.int64)


def _mix(x: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    with numpy.errstate(over="ignore"):
        x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return x ^ (x >> numpy.uint64(31))
