"""Text as it was meant: mojibake, normal form, control characters, line ends."""

from __future__ import annotations

import re
import unicodedata

from bessemer.data.document import Document


def _upper_half() -> dict[str, int]:
    """The characters that bytes 0x80 to 0xFF show as in Windows-1252, or in Latin-1 where that has none."""
    table = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        try:
            table[bytes([byte]).decode("cp1252")] = byte
        except UnicodeDecodeError:
            continue
    return table


BYTES = _upper_half()
RUN = re.compile("[" + re.escape("".join(sorted(BYTES))) + "]{2,}")
LEADS = frozenset([0xC2, 0xC3, 0xC4, 0xC5, 0xCE, 0xCF, 0xD0, 0xD1, 0xD7, 0xD8, 0xD9, *range(0xE2, 0xEA), 0xEF, 0xF0])
"""First bytes of the scripts and signs people write; a run that begins with another is left as it is."""
SURE = frozenset([0xC2, 0xC3])
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufff9-\ufffb]")
ENDS = re.compile("\r\n?|\x85|\u2028|\u2029")


def unicode(document: Document, *, mojibake: bool = True, form: bool = True, most_lost: float = 0.005) -> Document | str:
    """Mends UTF-8 that was read as Latin-1 or Windows-1252, brings text to NFC, drops control characters, unifies line ends.

    Args:
        document: any.
        mojibake: mend what was decoded wrongly ("cafÃ©" was "café"), also when that happened more than once.
        form: compose characters (Unicode normal form C).
        most_lost: remove a document in which more than this share of characters is U+FFFD: what it was can't be known.
    """
    text = document.text
    if not text.isascii():
        if text.count("\ufffd") > most_lost * len(text):
            return "mis-encoded"
        if mojibake:
            text = mend_mojibake(text)
        if form:
            text = unicodedata.normalize("NFC", text)
    text = CONTROL.sub("", ENDS.sub("\n", text))
    return document.with_text(text) if text.strip() else "empty"


def mend_mojibake(text: str) -> str:
    """Turns every run of upper-half characters that is strictly valid UTF-8 back into what it was.

    Two such characters side by side do occur in good text ("É»"), so lone doubtful pairs are left: a document must
    show at least two, or one of three characters and more, or one that begins with the marks of Western mojibake.
    """
    for _ in range(3):  # text can be decoded wrongly more than once
        found = [(run, meant) for run in RUN.finditer(text) if (meant := _meant(run[0])) is not None]
        sure = [run for run, _ in found if len(run[0]) >= 3 or BYTES[run[0][0]] in SURE]
        if not sure and len(found) < 2:
            return text
        parts, end = [], 0
        for run, meant in found:
            parts += [text[end : run.start()], meant]
            end = run.end()
        text = "".join(parts) + text[end:]
    return text


def _meant(run: str) -> str | None:
    raw = bytes(BYTES[character] for character in run)
    if raw[0] not in LEADS:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
