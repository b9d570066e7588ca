"""C4's rules."""

from __future__ import annotations

import re

from bessemer.data.document import Document

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE = re.compile(r"[.!?][\"'”’)\]]*(?:\s|$)")
ENDS = (".", "!", "?", '"', "”", "'", "’")


def c4(
    document: Document,
    *,
    fewest_sentences: int = 5,
    fewest_words: int = 3,
    longest_word: int = 1000,
    punctuation: bool = True,
    braces: bool = True,
    leave: list[str] = ["code"],
) -> Document | str:
    """C4's cleaning (Raffel et al. 2020): lines that end no sentence go, then documents that are left too short or no prose.

    Args:
        document: any.
        fewest_sentences: a document has at least so many after its lines were cleaned.
        fewest_words: a line has at least so many words.
        longest_word: a line with a longer one goes.
        punctuation: lines that don't end in a sentence's punctuation go.
        braces: a document with "{" goes.
        leave: domains this rule passes over.
    """
    if document.domain in leave:
        return document
    lowered = document.text.lower()
    if "lorem ipsum" in lowered:
        return "lorem ipsum"
    if braces and "{" in document.text:
        return "curly brace"
    kept = []
    for line in document.text.split("\n"):
        line = CITATION.sub("", line.strip())
        words = line.split()
        low = line.lower()
        if punctuation and (not line.endswith(ENDS) or line.endswith("...")):
            continue
        if len(words) < fewest_words or max(map(len, words), default=0) > longest_word or "javascript" in low:
            continue
        if any(phrase in low for phrase in POLICY):
            continue
        kept.append(line)
    text = "\n".join(kept)
    if len(SENTENCE.findall(text)) < fewest_sentences:
        return "too few sentences"
    return document.with_text(text)
