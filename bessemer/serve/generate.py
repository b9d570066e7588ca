"""Text from a model: all at once, or as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from bessemer.core.errors import BessemerError
from bessemer.data.tokenizer import Tokenizer
from bessemer.serve.decode import Decoding
from bessemer.serve.row import Generation, Piece, Prompt, Row, rows_for
from bessemer.serve.sampler import Sampling


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    rows: int = 32,
    trim: bool = False,
    begin: bool = True,
    scores: bool = False,
) -> list[Generation]:
    """Continues each prompt; a prompt's text doesn't depend on the others.

    Args:
        model: Batch and Cache -> Outputs.
        tokenizer: the one the model was trained with.
        prompts: texts to continue, or their tokens; equal ones get different continuations when sampled. An empty one begins a document.
        max_tokens: the most tokens written; None writes until the context is full.
        temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; temperature 0 is greedy.
        seed: with the prompt, the key of every draw.
        stop: strings that end a text, which is cut before them.
        rows: texts written at once.
        trim: drop the beginning of a prompt that is too long, so that max_tokens (or half the context) fit; otherwise it is refused.
        begin: read the token that begins documents before each prompt, as in training.
        scores: keep each token's log-probability.

    Raises:
        BessemerError: a setting is out of range, a prompt is empty or too long, the tokenizer isn't the model's.
    """
    how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    texts = _prepare(model, tokenizer, prompts, max_tokens=max_tokens, trim=trim, begin=begin, seed=seed, stop=stop)
    for _ in _write(model, tokenizer, texts, how, rows, scores):
        continue
    return [row.result(scores) for row in texts]


def stream(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    rows: int = 32,
    trim: bool = False,
    begin: bool = True,
) -> Iterator[Piece]:
    """The same texts as `generate`, in pieces as they are written: whole characters, never a part of a stop string.

    Settings and prompts are checked when it is called, before the first piece is asked for.
    """
    how = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    texts = _prepare(model, tokenizer, prompts, max_tokens=max_tokens, trim=trim, begin=begin, seed=seed, stop=stop)
    return _write(model, tokenizer, texts, how, rows, False)


def context_of(model: nn.Module) -> int:
    """How many tokens the model reads at most."""
    return int(model.options["length"])  # type: ignore[index, arg-type, operator]


def check_vocabulary(model: nn.Module, tokenizer: Tokenizer) -> int:
    """How many tokens may be written: the tokenizer's; the model's table may be padded beyond them.

    Raises:
        BessemerError: the tokenizer has tokens the model doesn't know.
    """
    known = int(model.vocabulary)  # type: ignore[arg-type]
    if tokenizer.vocabulary_size > known:
        raise BessemerError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens and the model {known}",
            key="vocabulary",
            mend="give the tokenizer the model was trained with",
        )
    return tokenizer.vocabulary_size


def _prepare(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None,
    trim: bool,
    begin: bool,
    seed: int,
    stop: Sequence[str],
) -> list[Row]:
    check_vocabulary(model, tokenizer)
    return rows_for(prompts, tokenizer, context=context_of(model), max_tokens=max_tokens, trim=trim, begin=begin, seed=seed, stop=stop)


def _write(model: nn.Module, tokenizer: Tokenizer, texts: list[Row], how: Sampling, rows: int, scored: bool) -> Iterator[Piece]:
    """Rows of similar length together, so that little is padding; each row's pieces in order."""
    if rows < 1:
        raise BessemerError(f"{rows} texts can't be written at once", key="rows", mend="give 1 or more")
    ends = _ends(model, tokenizer)
    order = sorted(texts, key=lambda row: len(row.read))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for start in range(0, len(order), rows):
            for step in Decoding(model, order[start : start + rows], how, tokenizer.vocabulary_size, scored).run():
                for row, token in step:
                    yield row.take(token, tokenizer.bytes_of(token), ends)
    finally:
        for module in training:
            module.training = True


def _ends(model: nn.Module, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those an imported model names beside it."""
    told = getattr(model, "imported", {}).get("tokens", {}).get("eos", [])
    return frozenset([tokenizer.end, *(told if isinstance(told, list) else [told])])
