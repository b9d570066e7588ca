"""FineWeb's own rules."""

from __future__ import annotations

from bessemer.data.document import Document

SENTENCE_ENDS = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "।", "؟")


def fineweb(
    document: Document,
    *,
    punctuated: float = 0.12,
    short_lines: float = 0.67,
    short: int = 30,
    repeated: float = 0.1,
    breaks: float = 0.3,
    leave: list[str] = ["code"],
) -> Document | str:
    """FineWeb's line filters (Penedo et al. 2024, section 3.6): punctuated lines, short lines, repeated lines, line breaks.

    Args:
        document: any.
        punctuated: the smallest share of lines that end in a sentence's punctuation.
        short_lines: the largest share of lines of at most `short` characters.
        short: how long a short line is, in characters.
        repeated: the largest share of characters in lines that are copies of earlier ones.
        breaks: the most line breaks for each word.
        leave: domains this rule passes over.
    """
    if document.domain in leave:
        return document
    lines = [line.strip() for line in document.text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    if sum(line.endswith(SENTENCE_ENDS) for line in lines) < punctuated * len(lines):
        return "too few lines end a sentence"
    if sum(len(line) <= short for line in lines) > short_lines * len(lines):
        return "too many short lines"
    seen: set[str] = set()
    copied = 0
    for line in lines:
        copied += len(line) if line in seen else 0
        seen.add(line)
    if copied > repeated * sum(map(len, lines)):
        return "repeated lines"
    if document.text.count("\n") > breaks * len(document.text.split()):
        return "too many line breaks"
    return document
