"""Next token, with some of what is read masked."""

from __future__ import annotations

from dataclasses import replace

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.data.special import MASK, Words, find
from bessemer.objectives._segments import blanked, chances, inside
from bessemer.objectives.next_token import NextToken


class Meap(NextToken):
    """Next-token prediction from inputs of which a few are masked (Zhuang et al. 2025, "Mask-Enhanced Autoregressive Prediction").

    Claim: far better at retrieving key information and on long contexts, on par elsewhere, at no further cost.

    Every token is still a target, the masked ones too; attention stays causal. A document's first place, which reads no token of
    it, is never masked.

    Terms: those of next_token.

    Args:
        rate: the chance of each input to be masked (0.15 in the paper's pre-training).
        mask: the special token that stands for it; auto: `<|mask|>`, or what the tokenizer has for it.
        z, chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer has no mask token, or the rate is none.
    """

    def __init__(self, *, rate: float = 0.15, mask: str = "auto", z: float = 0.0, chunk: int | Auto = "auto") -> None:
        super().__init__(z=z, chunk=chunk)
        self.rate, self.mask = chance_of("rate", rate), mask

    def read(self, tokenizer: Words) -> None:
        self.blank = mask_of(tokenizer, self.mask)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        chosen = (chances(batch, seed, "meap") < self.rate) & inside(batch) & (batch.positions > 0)
        return replace(batch, tokens=blanked(batch.tokens, chosen, self.blank))


def mask_of(tokenizer: Words, name: str) -> int:
    """The id of the mask token."""
    return find(tokenizer, MASK if name == "auto" else name, "task.objective.mask")


def chance_of(name: str, value: float) -> float:
    """The value of an option that is a chance.

    Raises:
        RecipeError: it is not above 0 and below 1.
    """
    if not 0 < value < 1:
        raise RecipeError(f"a chance between 0 and 1 is wanted, and {value} is given", key=f"task.objective.{name}")
    return value
