"""One text being written: its prompt, its tokens so far, and why it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bessemer.core import rng
from bessemer.core.errors import BessemerError
from bessemer.data.tokenizer import Tokenizer
from bessemer.serve.stream import TextStream

Prompt = str | Sequence[int]
"""A text to continue, or its tokens, which are then read as they are."""
Finish = Literal["end", "stop", "length", "context"]
"""Why a text ended: the model wrote its end token, a stop string came, `max_tokens` or the model's context was full."""


@dataclass(frozen=True)
class Generation:
    """A finished text.

    Attributes:
        prompt: what it continues; decoded, if it was given as tokens.
        text: what was written, without the stop string.
        tokens: every token picked, the end token and those of a stop string included.
        finish: why it ended.
        prompt_tokens: how many tokens of the prompt were read.
        log_probabilities: of each token under the model at temperature 1, when asked for.
    """

    prompt: str
    text: str
    tokens: list[int]
    finish: Finish
    prompt_tokens: int
    log_probabilities: list[float] | None = None


@dataclass(frozen=True)
class Piece:
    """Some more text of one prompt.

    Attributes:
        row: the prompt's place in the list.
        text: whole characters that are sure to belong to the text; may be empty.
        finish: set on the row's last piece.
    """

    row: int
    text: str
    finish: Finish | None = None


@dataclass
class Row:
    """A text in the making.

    Attributes:
        number: the prompt's place in the list.
        prompt: its text.
        read: the prompt's tokens.
        key: what its draws are keyed by.
        most: how many tokens it may have, by `max_tokens` and by the context.
        full: the finish when that many are there.
    """

    number: int
    prompt: str
    read: list[int]
    key: int
    most: int
    full: Finish
    stream: TextStream
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None

    def take(self, token: int, spelled: bytes, ends: frozenset[int]) -> Piece:
        """Adds a token and gives what text is sure with it."""
        self.tokens.append(token)
        text = "" if token in ends else self.stream.push(spelled)
        if self.stream.stopped:
            self.finish = "stop"
        elif token in ends:
            self.finish = "end"
        elif len(self.tokens) >= self.most:
            self.finish = self.full
        if self.finish is not None:
            text += self.stream.close()
            if self.stream.stopped:
                self.finish = "stop"
        self.text += text
        return Piece(self.number, text, self.finish)

    def result(self, scored: bool) -> Generation:
        """The finished text."""
        if self.finish is None:
            raise ValueError("the text is not finished")
        return Generation(self.prompt, self.text, self.tokens, self.finish, len(self.read), self.log_probabilities if scored else None)


def rows_for(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, *, context: int, max_tokens: int | None, trim: bool, begin: bool, seed: int, stop: Sequence[str]
) -> list[Row]:
    """A row for each prompt, checked and keyed.

    A row's draws are keyed by (seed, the prompt's tokens, how many equal prompts came before it): the same prompt gives the
    same text whatever else is asked for, and equal prompts give different ones.

    Raises:
        BessemerError: a prompt is empty or leaves no room in the context; max_tokens is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise BessemerError(f"{max_tokens} tokens can't be written", key="max_tokens", mend="give 1 or more")
    if isinstance(prompts, str):
        raise BessemerError("prompts is one string where a list of them is wanted", key="prompts", mend="put it in a list")
    seen: Counter[str] = Counter()
    rows = []
    for number, prompt in enumerate(prompts):
        read = _read(prompt, number, tokenizer, context, max_tokens, trim, begin)
        name = ",".join(map(str, read))
        key = rng.key(seed, "generate", name, seen[name])
        seen[name] += 1
        room = context - len(read)
        most, full = (room, "context") if max_tokens is None or max_tokens > room else (max_tokens, "length")
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        rows.append(Row(number, text, read, key, most, full, TextStream(stop)))  # type: ignore[arg-type]
    return rows


def _read(prompt: Prompt, number: int, tokenizer: Tokenizer, context: int, max_tokens: int | None, trim: bool, begin: bool) -> list[int]:
    """The prompt's tokens, after the one that begins documents if wanted; an empty prompt is then a document's beginning."""
    first = [tokenizer.begin] if begin and isinstance(prompt, str) else []
    read = tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    key = f"prompts[{number}]"
    if not first + read:
        raise BessemerError("the prompt is empty, so there is nothing to continue", key=key, mend="give at least one character, or begin = true")
    strange = next((token for token in read if not 0 <= token < tokenizer.vocabulary_size), None)
    if strange is not None:
        raise BessemerError(f"there is no token {strange}; they are numbered 0 to {tokenizer.vocabulary_size - 1}", key=key)
    if len(first) + len(read) < context:
        return first + read
    if not trim:
        raise BessemerError(
            f"the prompt has {len(read)} tokens, and the model's context of {context} leaves none to write",
            key=key,
            mend=f"shorten it to fewer than {context - len(first)} tokens, or drop its beginning with --trim (trim=True)",
        )
    room = context - len(first) - min(max_tokens or 1, context // 2)
    return first + read[len(read) - max(1, room) :]
