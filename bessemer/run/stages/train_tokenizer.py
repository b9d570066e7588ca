"""Corpus -> tokenizer."""

from __future__ import annotations

import itertools
import time

from bessemer.core.errors import DataError
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus
from bessemer.data.special import SETS, Reserve
from bessemer.data.tokenizer import END, PAD, Tokenizer, write_tokenizer
from bessemer.data.tokenizer_train import Algorithm, check_options, sample, train


def train_tokenizer(
    work: Work,
    corpus: Corpus,
    *,
    algorithm: Algorithm = "bpe",
    vocabulary: int = 8192,
    split: str = "gpt2",
    specials: list[str] = [END, PAD],
    reserve: list[Reserve] = [],
    megabytes: float = 32.0,
) -> Tokenizer:
    """Trains a byte-level tokenizer on a sample of the corpus.

    Args:
        algorithm: "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018), both on bytes, so that no text is unknown.
        vocabulary: ids in all, special tokens and the 256 bytes included.
        split: how text is cut before: "gpt2", "llama3" (digits by threes), or a regular expression.
        specials: special tokens; the first ends (and begins) documents, the second fills rows.
        reserve: sets of further special tokens for objectives that need them: "mask" (MEAP, masked language, ELECTRA, diffusion),
            "modes" and "blanks" (UL2), "units" (speech-text interleaving).
        megabytes: how much text to learn from; documents are chosen by a hash, the same ones each time.
    """
    specials = [*specials, *(token for name in reserve for token in SETS[name] if token not in specials)]
    check_options(vocabulary, specials)
    if not corpus.count:
        raise DataError("the corpus has no documents", file=corpus.folder, mend="look at what the sources and cleaning stages dropped, and why")
    started = time.monotonic()
    most = min(megabytes, 2.0) if work.smoke else megabytes

    def told(done: int, total: int) -> None:
        work.progress(done / 1e6, total / 1e6, "MB", rate=done / 1e6 / max(1e-9, time.monotonic() - started))
        if done >= total:
            work.note("counting done, learning the vocabulary")

    texts = sample(corpus, megabytes=most, seed=work.seed, on_text=told)
    check = list(itertools.islice(sample(corpus, megabytes=min(0.5, most), seed=work.seed + 1), 500))
    backend, notes = train(texts, algorithm=algorithm, vocabulary=vocabulary, split=split, specials=specials, check=check)
    write_tokenizer(work.out, backend, notes)
    if backend.get_vocab_size() < vocabulary:
        work.note(f"the text is enough for a vocabulary of {backend.get_vocab_size()} only, where {vocabulary} was asked for")
    work.info |= _figures(Tokenizer.load(work.out), check) | {"seconds": round(time.monotonic() - started, 2)}
    return None  # type: ignore[return-value]  # the runner seals and opens it


def _figures(made: Tokenizer, check: list[str]) -> dict[str, object]:
    size = sum(len(text.encode()) for text in check)
    ids = sum(len(each) for each in made.encode_batch(check))
    return {
        "vocabulary": made.vocabulary_size,
        "end": made.end,
        "begin": made.begin,
        "pad": made.pad,
        "bytes_per_token": round(size / ids, 4) if ids else None,
        "engine": made.engine,
        "fingerprint": made.fingerprint,
    }
