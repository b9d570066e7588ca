"""Picking the next token from logits, with draws keyed so that a row's text doesn't depend on its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.core.errors import BessemerError


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: only the k most likely tokens stay; 0 keeps all.
        top_p: the smallest set of most likely tokens whose probability reaches it stays (Holtzman et al. 2019); 1 keeps all.
        min_p: tokens at least this fraction of the most likely one's probability stay (Nguyen et al. 2024); 0 keeps all.
        repetition_penalty: positive logits of tokens already in the text are divided by it, negative ones multiplied
            (Keskar et al. 2019); 1 leaves them.

    Raises:
        BessemerError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 (the most likely token) or above, such as 0.8")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or above, such as 50")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1, such as 0.95")
        _check("min_p", self.min_p, 0 <= self.min_p < 1, "at least 0 and below 1, such as 0.05")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0; 1 changes nothing")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def remembers(self) -> bool:
        """Whether picking needs to know which tokens a row already holds."""
        return self.repetition_penalty != 1


def pick(logits: Tensor, draws: Tensor | None, how: Sampling, seen: Tensor | None = None) -> Tensor:
    """One token for each row.

    Args:
        logits: [rows, vocabulary], any floating type.
        draws: float64 [rows], uniform in [0, 1); not read when greedy.
        how: the settings.
        seen: bool [rows, vocabulary], the tokens each row already holds; read when there is a repetition penalty.

    Returns:
        int64 [rows]. The token is the first, by its number, at which the kept tokens' running probability passes the
        draw: equal draws and nearly equal logits give the same token, however many rows there are.

    Raises:
        BessemerError: a row's logits are not finite.
    """
    logits = logits.float()
    if how.remembers and seen is not None:
        penalised = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    best, tokens = logits.max(-1)
    if not bool(best.isfinite().all()):
        raise BessemerError("the model's logits are not finite", mend="its weights are damaged or training diverged; use an earlier checkpoint")
    if how.greedy:
        return tokens
    if draws is None:
        raise ValueError("sampling at a temperature above 0 needs draws")
    probabilities, places = _kept(logits / how.temperature, how)
    running = probabilities.double().cumsum(-1)
    total = running[:, -1:]
    wanted = torch.minimum(draws[:, None].to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(running, wanted, right=True)
    return (chosen if places is None else places.gather(-1, chosen))[:, 0]


def draw(keys: Sequence[int], position: int) -> list[float]:
    """A uniform number in [0, 1) for each row's key at one position of its text."""
    return [(rng.key(key, "token", position) >> 10) / (1 << 53) for key in keys]


def _kept(scaled: Tensor, how: Sampling) -> tuple[Tensor, Tensor | None]:
    """Probabilities of the tokens that stay, zero for the others, and the tokens they belong to, in rising order.

    The second is None when every token is still there.
    """
    probabilities = scaled.softmax(-1)
    if how.top_k == 0 and how.top_p == 1:
        return _above_min(probabilities, how), None
    vocabulary = probabilities.shape[-1]
    width = min(how.top_k or 512, vocabulary)
    values, places = probabilities.topk(width, -1)
    if how.top_k:
        values = values / values.sum(-1, keepdim=True)
    elif width < vocabulary and bool((values.double().sum(-1) < how.top_p).any()):
        values, places = probabilities.sort(-1, descending=True)
    if how.top_p < 1:
        before = values.double().cumsum(-1) - values
        values = values.masked_fill(before >= how.top_p, 0.0)
        values[:, 0].clamp_(min=1e-30)
    values = _above_min(values, how)
    places, order = places.sort(-1)
    return values.gather(-1, order), places


def _above_min(probabilities: Tensor, how: Sampling) -> Tensor:
    if how.min_p == 0:
        return probabilities
    return probabilities.masked_fill(probabilities < how.min_p * probabilities.amax(-1, keepdim=True), 0.0)


def _check(name: str, value: float, good: bool, wanted: str) -> None:
    if not good or not math.isfinite(value):
        raise BessemerError(f"{value} is out of range", key=name, mend=f"give {name} {wanted}")
