"""Gopher's repetition heuristics."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from bessemer.data.document import Document

TOP = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_repetition(
    document: Document,
    *,
    lines: float = 0.30,
    paragraphs: float = 0.30,
    line_characters: float = 0.20,
    paragraph_characters: float = 0.20,
    leniency: float = 1.0,
    leave: list[str] = ["code"],
) -> Document | str:
    """Gopher's repetition filter (Rae et al. 2021, table A1): repeated lines, paragraphs and word n-grams.

    Args:
        document: any.
        lines, paragraphs: the largest share that are copies of earlier ones.
        line_characters, paragraph_characters: the largest share of characters inside such copies.
        leniency: what the paper's limits for n-grams (0.20 to 0.16 of characters in the most frequent 2- to 4-gram,
            0.15 to 0.10 in repeated 5- to 10-grams) are multiplied with.
        leave: domains this rule passes over.
    """
    if document.domain in leave:
        return document
    size = len(document.text)
    for what, pieces, most, most_characters in (
        ("line", document.text.split("\n"), lines, line_characters),
        ("paragraph", document.text.split("\n\n"), paragraphs, paragraph_characters),
    ):
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        copies = _copies(pieces)
        if len(copies) > most * len(pieces):
            return f"repeated {what}s"
        if sum(map(len, copies)) > most_characters * size:
            return f"repeated {what}s, by characters"
    words = document.text.split()
    for n, most in TOP.items():
        if _most_frequent(words, n) > leniency * most * size:
            return f"one {n}-gram too often"
    return _repeated_ngrams(words, leniency * size) or document


def _repeated_ngrams(words: list[str], size: float) -> str | None:
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word))
    for n, most in REPEATED.items():
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        if len(set(grams)) == len(grams):
            return None  # nor can a longer one repeat
        seen, covered, reach = set(), 0, 0
        for place, gram in enumerate(grams):
            if gram in seen:  # characters are counted once, however many repeats cover them
                begin = max(place, reach)
                covered += starts[place + n] - starts[begin]
                reach = place + n
            seen.add(gram)
        if covered > most * size:
            return f"repeated {n}-grams"
    return None


def _copies(pieces: list[str]) -> list[str]:
    counts = Counter(pieces)
    return [piece for piece, count in counts.items() for _ in range(count - 1)]


def _most_frequent(words: list[str], n: int) -> int:
    """Characters inside the most frequent n-gram's occurrences; 0 if none occurs twice."""
    counts = Counter(pairwise(words) if n == 2 else zip(*(words[i:] for i in range(n)), strict=False))
    if not counts:
        return 0
    gram, count = max(counts.items(), key=lambda item: (item[1], sum(map(len, item[0]))))
    return sum(map(len, gram)) * count if count > 1 else 0
