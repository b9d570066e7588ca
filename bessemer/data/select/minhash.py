"""Near copies."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy
import pyarrow

from bessemer.core import rng
from bessemer.core.errors import RecipeError
from bessemer.data.select._words import BASE, U64, mix, word_hashes

Array = numpy.ndarray[Any, Any]
CHUNK = 1 << 15
"""n-grams permuted at once: 128 kB, which stay in the second-level cache."""


def minhash(
    texts: pyarrow.Array,
    *,
    ngram: int = 5,
    permutations: int = 112,
    bands: int = 14,
    threshold: float | None = None,
    seed: int = 0,
) -> Array:
    """Documents that share most of their word n-grams, by MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022).

    Two documents whose sets of n-grams have Jaccard similarity s share a key with probability 1 - (1 - s**rows)**bands,
    where rows = permutations // bands: 0.5 at s = 0.70 for the default 14 bands of 8, 0.97 at s = 0.85.

    Args:
        texts: string array [documents].
        ngram: words in an n-gram; a text of fewer words has one n-gram, all of it.
        permutations: how many hash functions.
        bands: into how many keys their minima are gathered.
        threshold: choose the bands so that the similarity of even odds comes as near to this as it can.
        seed: another seed gives other hash functions.

    Returns:
        uint64 [bands, documents]; 0 for a text without a word.

    Raises:
        RecipeError: there are more bands than permutations, or an option is not above 0.
    """
    if min(ngram, permutations, bands) < 1 or bands > permutations or (threshold is not None and not 0 < threshold < 1):
        raise RecipeError(f"ngram = {ngram}, permutations = {permutations}, bands = {bands}, threshold = {threshold} can't be", key="minhash")
    bands = bands if threshold is None else best_bands(permutations, threshold)
    signature, filled = signatures(texts, ngram, bands * (permutations // bands), seed)
    keys = numpy.zeros((bands, len(texts)), dtype=U64)
    rows = signature.reshape(bands, -1, signature.shape[1])
    for band in range(bands):
        key = numpy.full(signature.shape[1], band + 1, dtype=U64)
        for row in rows[band]:
            key = key * U64(BASE) + row
        keys[band, filled] = numpy.maximum(mix(key), U64(1))
    return keys


def signatures(texts: pyarrow.Array, ngram: int, permutations: int, seed: int = 0) -> tuple[Array, Array]:
    """The minima themselves.

    The minimum of (a * g + b) modulo 2**32 over a text's n-gram hashes g, for each of the permutations (a, b), a odd.

    Returns:
        uint32 [permutations, texts with a word]; int64 [texts with a word], which they are.
    """
    grams, starts, filled = ngrams(texts, ngram)
    found = numpy.empty((permutations, len(filled)), dtype=numpy.uint32)
    factors, addends = _permutations(permutations, seed)
    ends = numpy.append(starts[1:], len(grams))
    first = 0
    while first < len(filled):
        last = max(first + 1, int(numpy.searchsorted(ends, starts[first] + CHUNK, side="right")))
        piece, places = grams[starts[first] : ends[last - 1]], starts[first:last] - starts[first]
        scratch = numpy.empty_like(piece)
        for number in range(permutations):
            numpy.multiply(piece, factors[number], out=scratch)
            numpy.add(scratch, addends[number], out=scratch)
            numpy.minimum.reduceat(scratch, places, out=found[number, first:last])
        first = last
    return found, filled


def ngrams(texts: pyarrow.Array, ngram: int) -> tuple[Array, Array, Array]:
    """The n-gram hashes of every text that has a word.

    The hash of words w_0..w_(n-1) is the upper half of mix(sum of w_i * BASE**(n-1-i)); missing words count as 0.

    Returns:
        uint32 [n-grams]; int64 [texts with a word], where each one's begin; int64 [texts with a word], which they are.
    """
    words, bounds = word_hashes(texts)
    counts = numpy.diff(bounds)
    filled = numpy.flatnonzero(counts)
    counts = counts[filled]
    pad = ngram - 1
    padded = numpy.zeros(len(words) + pad * len(filled), dtype=U64)
    shift = numpy.repeat(numpy.arange(len(filled)) * pad, counts)
    places = numpy.arange(len(words)) + shift
    padded[places] = words
    size = len(padded) - pad if len(padded) else 0
    sums = padded[:size].copy()
    for step in range(1, ngram):
        sums *= U64(BASE)
        sums += padded[step : size + step]
    per_text = numpy.maximum(counts - pad, 1)
    starts = numpy.cumsum(per_text) - per_text
    begins = numpy.cumsum(counts + pad) - (counts + pad)
    chosen = numpy.repeat(begins - starts, per_text) + numpy.arange(int(per_text.sum()))
    return (mix(sums[chosen]) >> U64(32)).astype(numpy.uint32), starts, filled


def odds(similarity: float, bands: int, rows: int) -> float:
    """The probability that two documents of this Jaccard similarity share a key."""
    return 1 - (1 - similarity**rows) ** bands


@cache
def best_bands(permutations: int, threshold: float) -> int:
    """The number of bands that puts even odds nearest to the threshold."""
    return min(range(1, permutations + 1), key=lambda bands: abs(odds(threshold, bands, permutations // bands) - 0.5))


@cache
def _permutations(count: int, seed: int) -> tuple[Array, Array]:
    factors = numpy.array([rng.key(seed, "minhash factor", i) & 0xFFFFFFFF | 1 for i in range(count)], dtype=numpy.uint32)
    return factors, numpy.array([rng.key(seed, "minhash addend", i) & 0xFFFFFFFF for i in range(count)], dtype=numpy.uint32)
