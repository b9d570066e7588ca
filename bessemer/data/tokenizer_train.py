"""Training tokenizers on a keyed sample of a corpus, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import xxhash

from bessemer.core.errors import RecipeError
from bessemer.data.byte_level import characters
from bessemer.data.corpus import Corpus
from bessemer.data.fast_bpe import GPT2_SPLIT
from bessemer.data.tokenizer import is_fast

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"gpt2": GPT2_SPLIT, "llama3": LLAMA3_SPLIT}
Algorithm = Literal["bpe", "unigram"]
SplitName = Literal["gpt2", "llama3"]
_LONGEST = 1 << 20
"""Characters of one document that are trained on: a single huge one must not set the vocabulary."""


def train(
    texts: Iterator[str],
    *,
    algorithm: Algorithm,
    vocabulary: int,
    split: SplitName | str,
    specials: Sequence[str],
    check: Sequence[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """A byte-level tokenizer trained on `texts`, and its notes (see `write_tokenizer`).

    Args:
        algorithm: "bpe" merges the most frequent pair again and again (Sennrich et al. 2016, on bytes: Radford et al.
            2019); "unigram" prunes a large vocabulary to the likeliest one (Kudo 2018).
        vocabulary: ids in all: 256 bytes, the specials, and what is learnt; fewer where the text is too little.
        split: how text is cut before: "gpt2", "llama3" (digits by threes), or a regular expression.
        specials: special tokens; the first ends (and begins) documents, the second fills rows.
        check: texts on which tiktoken must agree for it to be used.

    Raises:
        RecipeError: the vocabulary has no room for the bytes and specials, or a special token is given twice.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    check_options(vocabulary, specials)
    pattern = SPLITS.get(split, split)
    made = tokenizers.Tokenizer(models.BPE() if algorithm == "bpe" else models.Unigram())
    try:
        cutter = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # the library raises bare Exceptions
        raise RecipeError(f"{pattern!r} is no regular expression: {error}", key="split") from None
    made.pre_tokenizer = pre_tokenizers.Sequence([cutter, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainer=_trainer(algorithm, vocabulary, specials))
    if algorithm == "bpe":
        made.model.ignore_merges = True  # a piece that is a token is that token, as tiktoken has it
    end = made.token_to_id(specials[0])
    made.post_processor = processors.TemplateProcessing(
        single=f"{specials[0]} $A", pair=f"{specials[0]} $A {specials[0]} $B", special_tokens=[(specials[0], end)]
    )
    pad = made.token_to_id(specials[1]) if len(specials) > 1 else end
    return made, {"end": end, "begin": end, "pad": pad, "fast": algorithm == "bpe" and is_fast(made, check), "algorithm": algorithm}


def check_options(vocabulary: int, specials: Sequence[str]) -> None:
    """Refuses what can't be trained, before any text is read.

    Raises:
        RecipeError: the vocabulary has no room for the bytes and specials; no special, or one given twice or empty.
    """
    if not specials or len(set(specials)) != len(specials) or not all(specials):
        raise RecipeError(f"special tokens are different and not empty, the first of them ends documents; {list(specials)} is given", key="specials")
    if vocabulary < 256 + len(specials):
        problem = f"a vocabulary of {vocabulary} has no room for 256 bytes and {len(specials)} special tokens"
        raise RecipeError(problem, key="vocabulary", mend=f"it is at least {256 + len(specials)}; 8192 suits small models")


def _trainer(algorithm: Algorithm, vocabulary: int, specials: Sequence[str]) -> Any:
    from tokenizers import trainers

    alphabet = list(characters())
    common: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": list(specials), "initial_alphabet": alphabet, "show_progress": False}
    return trainers.BpeTrainer(**common) if algorithm == "bpe" else trainers.UnigramTrainer(**common)


def sample(corpus: Corpus, *, megabytes: float, seed: int, on_text: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Documents chosen by the hash of their text, about `megabytes` of them in all; the same ones each time.

    Args:
        on_text: called now and then with (bytes so far, bytes there will be about).
    """
    total = max(1, corpus.bytes)
    most = int(megabytes * 1e6)
    threshold = min(1.0, most / total) * 2.0**64
    expected, read, shown = min(most, total), 0, 0
    for batch in corpus.batches(["text"]):
        for text in batch.column("text").to_pylist():
            content = text.encode()
            if xxhash.xxh3_64_intdigest(content, seed=seed & (2**64 - 1)) >= threshold:
                continue
            yield text[:_LONGEST]
            read += min(len(content), _LONGEST)
            if on_text and read - shown > 1 << 20:
                shown = read
                on_text(read, max(read, expected))
            if read > 1.2 * most:  # a few huge documents: memory stays bounded
                return
