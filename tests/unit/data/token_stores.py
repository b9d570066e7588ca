"""Tokenizers and token stores for the tests of this folder."""

from functools import cache
from pathlib import Path

from bessemer.core.artifact import seal
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus, write_corpus
from bessemer.data.document import Document
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.run.stages.tokenize import tokenize
from bessemer.run.stages.train_tokenizer import train_tokenizer
from tests.folders import folder

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "row",
    "token",
    "store",
    "loader",
    "packs",
    "mixes",
    "reads",
    "writes",
    "über",
    "naïve",
    "日本",
    "été",
    "42",
    "7",
    "x_y",
    "==",
    "(",
    ")",
    ":",
    "\n\n",
    "\n",
    "",
    "",
    "",
    "",
]


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of 1 to `longest` words, some with runs of white space and letters beyond ASCII."""
    made = []
    for number in range(count):
        state = (seed * 7919 + number * 104729 + 1) % 2147483647
        words = []
        for _ in range(1 + state % longest):
            state = state * 48271 % 2147483647
            words.append(WORDS[state % len(WORDS)])
        made.append(" ".join(words) + f" {number}")
    return made


def documents(count: int = 200, seed: int = 0) -> list[Document]:
    domains = ("code", "prose", "prose", "rare")
    return [Document(text, f"s{i % 3}", domains[i % 4] if i % 16 != 3 else "rare", str(i)) for i, text in enumerate(texts(count, seed))]


def train(corpus: Corpus, **options) -> Tokenizer:
    out = folder()
    work = Work(out)
    train_tokenizer(work, corpus, **({"vocabulary": 320} | options))
    seal(out, "tokenizer", recipe={}, parents={}, info=work.info)
    return Tokenizer.open(out)


def store(corpus: Corpus, tokenizer: Tokenizer, out: Path | None = None, **options) -> Tokens:
    out = out or folder()
    work = Work(out)
    tokenize(work, corpus, tokenizer, **({"processes": 1, "held_out": 0.2} | options))
    seal(out, "tokens", recipe={}, parents={}, info=work.info)
    return Tokens.open(out)


@cache
def small_corpus() -> Corpus:
    return write_corpus(folder(), documents())


@cache
def small_tokenizer() -> Tokenizer:
    return train(small_corpus())


@cache
def small_tokens() -> Tokens:
    """200 documents of three sources and three domains, in three shards."""
    return store(small_corpus(), small_tokenizer())
