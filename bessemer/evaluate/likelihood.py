"""How likely a model finds a continuation after a context, and a text by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy
import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import BessemerError
from bessemer.data.tokenizer import Tokenizer
from bessemer.evaluate.score import score
from bessemer.evaluate.subject import Subject, at_rest


class Likelihood(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
        log_probability: in nats, at most 0; summed in float64.
        greedy: whether every token is the most likely one at its place.
        tokens: how many were scored.
        bytes: the continuation's UTF-8 bytes.
    """

    log_probability: float
    greedy: bool
    tokens: int
    bytes: int


class Stretch(NamedTuple):
    """Tokens to read and which of the predictions to score.

    Attributes:
        owner: which request it belongs to.
        read: tokens the model reads.
        targets: the token after each.
        first: the first target that is scored.
    """

    owner: int
    read: list[int]
    targets: list[int]
    first: int


def likelihoods(subject: Subject, pairs: Sequence[tuple[str, str]], *, rows: int = 16) -> list[Likelihood]:
    """log p(continuation | context) for each pair; an empty context is a document's beginning.

    Context and continuation are tokenized together, as running text would be: what is scored begins with the first token
    that reaches into the continuation. Contexts too long for the model lose their beginning.

    Raises:
        BessemerError: a continuation is empty or longer than the model's context.
    """
    stretches = []
    for owner, (context, continuation) in enumerate(pairs):
        before, after = split(subject.tokenizer, context, continuation)
        if not after:
            raise BessemerError("there is nothing to score: the continuation is empty", key=f"request {owner + 1}")
        if len(after) > subject.context:
            raise BessemerError(
                f"the continuation has {len(after)} tokens, and the model reads {subject.context}",
                key=f"request {owner + 1}",
                mend="shorten it, or measure bits per byte instead",
            )
        whole = [subject.tokenizer.begin, *before, *after][-(subject.context + 1) :]
        stretches.append(Stretch(owner, whole[:-1], whole[1:], len(whole) - 1 - len(after)))
    sizes = [len(continuation.encode()) for _, continuation in pairs]
    return _score_all(subject, stretches, sizes, rows)


def whole_likelihoods(subject: Subject, texts: Sequence[str], *, rows: int = 16) -> list[Likelihood]:
    """log p(text) from a document's beginning on, every token once, however long the text is.

    Long texts are cut into windows of the model's context; the last one begins as early as fits.
    """
    stretches = []
    for owner, text in enumerate(texts):
        whole = [subject.tokenizer.begin, *subject.tokenizer.encode(text)]
        for start in range(0, len(whole) - 1, subject.context):
            end = min(start + subject.context, len(whole) - 1)
            left = max(0, end - subject.context)
            stretches.append(Stretch(owner, whole[left:end], whole[left + 1 : end + 1], start - left))
    return _score_all(subject, stretches, [len(text.encode()) for text in texts], rows)


def split(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of both texts together, cut before the first that reaches into the continuation."""
    whole = tokenizer.encode(context + continuation)
    ends = list(itertools.accumulate(len(tokenizer.bytes_of(token)) for token in whole))
    border, total = len(context.encode()), len((context + continuation).encode())
    if (ends[-1] if ends else 0) != total:  # a tokenizer that changes the text leaves no bytes to count by
        return tokenizer.encode(context), tokenizer.encode(continuation)
    cut = sum(end <= border for end in ends)
    return whole[:cut], whole[cut:]


def _score_all(subject: Subject, stretches: list[Stretch], sizes: list[int], rows: int) -> list[Likelihood]:
    nats, tokens, greedy = numpy.zeros(len(sizes)), numpy.zeros(len(sizes), dtype=numpy.int64), numpy.ones(len(sizes), dtype=bool)
    done = 0
    with at_rest(subject.model) as device:
        for group in _groups(stretches, rows):
            batch = _batch(group).to(device)
            found = score(subject.model, batch)
            sums, hits = found.nats.sum(1).tolist(), found.top.sum(1).tolist()
            for place, stretch in enumerate(group):
                count = len(stretch.targets) - stretch.first
                nats[stretch.owner] += sums[place]
                tokens[stretch.owner] += count
                greedy[stretch.owner] &= hits[place] == count
            done += len(group)
            subject.progress(done, len(stretches), "requests")
    return [Likelihood(-float(n), bool(g), int(t), size) for n, g, t, size in zip(nats, greedy, tokens, sizes, strict=True)]


def _groups(stretches: list[Stretch], rows: int) -> Iterator[list[Stretch]]:
    """Stretches of similar length together, the longest first, so that too little memory shows at once."""
    order = sorted(stretches, key=lambda stretch: -len(stretch.read))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def _batch(group: list[Stretch]) -> Batch:
    """Padded on the right, where causal attention never looks."""
    length = max(len(stretch.read) for stretch in group)
    tokens, targets = torch.zeros(len(group), length, dtype=torch.int64), torch.zeros(len(group), length, dtype=torch.int64)
    weights = torch.zeros(len(group), length)
    for place, stretch in enumerate(group):
        size = len(stretch.read)
        tokens[place, :size] = torch.tensor(stretch.read)
        targets[place, :size] = torch.tensor(stretch.targets)
        weights[place, stretch.first : size] = 1.0
    return Batch(tokens, torch.arange(length).expand(len(group), length), targets=targets, weights={"next_token": weights})
