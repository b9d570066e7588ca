"""Which language a text is in, without a model."""

from __future__ import annotations

import re

from bessemer.core.errors import RecipeError, neighbours
from bessemer.data.document import Document

STOPS = {
    "en": "the of and to in is that it was for on are with as be this have from at by not or which you but they",
    "de": "der die und das ist nicht ein eine zu den von mit sich auf für dem im auch als es an werden aus er wird",
    "fr": "le la les des et est une un dans que pour qui sur pas plus par ce avec sont au aux ne du il elle cette",
    "es": "el la los las de que y en un una es por con para no se del al lo como más pero sus su este son está",
    "it": "il di che la e un una per non è in sono con del della si da come anche più le gli nel alla ma dei questo",
    "pt": "o de que e do da em um uma para não com os as no na se por mais dos como mas foi ao ele das são é",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er ook als bij door maar om naar uit die wordt",
    "sv": "och att det som en på är av för med till den har de inte om ett han var jag men sig från så kan",
    "da": "og at det som en på er af for med til den har de ikke om et han var jeg men sig fra så kan blev",
    "pl": "w i na z do się nie że to jest o jak po co ale przez od za tak dla być był są który oraz",
    "cs": "a se v na je že s z do o to i jako za po ale si od jsem by pro tak které byl při jsou",
    "tr": "ve bir bu da de için ile olarak çok daha olan gibi kadar sonra en ne var her ama değil olduğu",
    "fi": "ja on ei että se oli hän mutta kun niin ovat myös tai joka sen jos sitä ole mukaan kuin",
    "ro": "și de în a la cu nu o pe că este din un care mai pentru să ce sunt au fost prin sau",
    "hu": "a az és hogy nem is egy ez volt de meg csak van mint már el még ki azt lesz vagy",
}
STOP_SETS = {language: frozenset(words.split()) for language, words in STOPS.items()}
SCRIPTS = {
    "zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0400-\u04ff]", "ar": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]", "hi": r"[\u0900-\u097f]", "el": r"[\u0370-\u03ff]", "th": r"[\u0e00-\u0e7f]",
}  # fmt: skip
SCRIPT_PATTERNS = {language: re.compile(pattern) for language, pattern in SCRIPTS.items()}
WORD = re.compile(r"[^\W\d_]+")
HEAD = 20_000
"""Characters looked at; a document longer than this is taken to go on in its language."""


def language(
    document: Document,
    *,
    keep: list[str] = ["en"],
    least: float = 0.08,
    unknown: bool = False,
    leave: list[str] = ["code"],
) -> Document | str:
    """Keeps documents in the given languages, told by their script and by the share of their words that are stop words.

    A heuristic for telling languages of running text apart without a model; short or telegraphic texts come out unknown.

    Args:
        document: any.
        keep: of en de fr es it pt nl sv da pl cs tr fi ro hu zh ja ko ru ar he hi el th. Languages that share a script
            other than the Latin one are not told apart.
        least: the smallest share of stop words, for languages in Latin script.
        unknown: keep documents whose language can't be told.
        leave: domains this rule passes over.

    Raises:
        RecipeError: a language in `keep` is not known.
    """
    for name in keep:
        if name not in STOPS and name not in SCRIPTS:
            raise RecipeError(f"there is no language '{name}'", key="language.keep", mend=neighbours(name, [*STOPS, *SCRIPTS]))
    if document.domain in leave:
        return document
    found = tell(document.text, least)
    if found is None:
        return document if unknown else "language unknown"
    return document if found in keep else f"language {found}"


def tell(text: str, least: float = 0.08) -> str | None:
    """The most likely language of a text, or None."""
    text = text[:HEAD]
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    if not text.isascii():
        shares = {name: len(pattern.findall(text)) / letters for name, pattern in SCRIPT_PATTERNS.items()}
        if shares["ja"] > 0.1:  # kana tell Japanese from Chinese, whose characters it shares
            return "ja"
        best = max(shares, key=lambda name: shares[name])
        if shares[best] > 0.4:
            return best
    words = [word.lower() for word in WORD.findall(text)]
    if len(words) < 5:
        return None
    scores = {name: sum(word in stops for word in words) / len(words) for name, stops in STOP_SETS.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= least else None
