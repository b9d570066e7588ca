"""Gopher's quality heuristics."""

from __future__ import annotations

from bessemer.data.document import Document

BULLETS = ("•", "‣", "▶", "◀", "◦", "■", "□", "▪", "▫", "–", "-", "*")


def gopher_quality(
    document: Document,
    *,
    fewest_words: int = 50,
    most_words: int = 100_000,
    shortest_mean: float = 3.0,
    longest_mean: float = 10.0,
    symbols: float = 0.1,
    bullets: float = 0.9,
    ellipses: float = 0.3,
    alphabetic: float = 0.8,
    stop_words: int = 2,
    stops: list[str] = ["the", "be", "to", "of", "and", "that", "have", "with"],
    leave: list[str] = ["code"],
) -> Document | str:
    """Gopher's quality filter (Rae et al. 2021, table A1): length, word length, symbols, bullets, ellipses, letters, stop words.

    Args:
        document: any.
        fewest_words, most_words: how many words a document has.
        shortest_mean, longest_mean: the mean length of its words, in characters.
        symbols: the most "#" and the most ellipses for each word.
        bullets: the largest share of lines that begin with a bullet.
        ellipses: the largest share of lines that end with an ellipsis.
        alphabetic: the smallest share of words with a letter in them.
        stop_words: how many different words of `stops` it has at least.
        stops: English by default; give those of the documents' language.
        leave: domains this rule passes over.
    """
    if document.domain in leave:
        return document
    words = document.text.split()
    bare = [stripped for word in words if (stripped := word.strip(".,;:!?\"'()[]{}<>“”‘’«»…-–—*_`#"))]
    count = len(bare)
    if count < fewest_words:
        return "too few words"
    if count > most_words:
        return "too many words"
    mean = sum(map(len, bare)) / count
    if mean < shortest_mean:
        return "words too short"
    if mean > longest_mean:
        return "words too long"
    if document.text.count("#") > symbols * count or document.text.count("...") + document.text.count("…") > symbols * count:
        return "too many symbols"
    lines = [line.strip() for line in document.text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) > bullets * len(lines):
        return "too many bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > ellipses * len(lines):
        return "too many ellipses"
    if sum(not word.isascii() or any(map(str.isalpha, word)) for word in words) < alphabetic * len(words):
        return "too few words with letters"
    if len({word.lower() for word in bare} & set(stops)) < stop_words:
        return "too few stop words"
    return document
