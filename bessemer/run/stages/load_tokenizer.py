"""A tokenizer made elsewhere -> tokenizer."""

from __future__ import annotations

from bessemer.core.work import Work
from bessemer.data.tokenizer import END, Tokenizer, write_tokenizer
from bessemer.data.tokenizer_read import read_tokenizer


def load_tokenizer(
    work: Work, *, path: str, split: str = "llama3", specials: list[str] = [END], end: str | None = None, pad: str | None = None
) -> Tokenizer:
    """Takes over a tokenizer others made: a `tokenizer.json`, a SentencePiece `.model` or a `.tiktoken` rank file.

    Args:
        path: the file, or a folder that holds one of them.
        split: how text is cut before, for `.tiktoken` files, which don't tell: "gpt2", "llama3" or a regular expression.
        specials: special tokens that get the ids after a `.tiktoken` file's last.
        end: the token that ends a document, where the usual names don't tell.
        pad: the token that fills rows, where the usual names don't tell.
    """
    backend, notes = read_tokenizer(path, split=split, specials=specials, end=end, pad=pad)
    write_tokenizer(work.out, backend, notes)
    made = Tokenizer.load(work.out)
    work.info |= {
        "vocabulary": made.vocabulary_size,
        "end": made.end,
        "begin": made.begin,
        "pad": made.pad,
        "engine": made.engine,
        "fingerprint": made.fingerprint,
    }
    return None  # type: ignore[return-value]  # the runner seals and opens it
