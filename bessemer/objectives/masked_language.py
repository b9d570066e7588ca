"""Masked tokens, predicted from both sides."""

from __future__ import annotations

from dataclasses import replace

import torch

from bessemer.core.batch import Batch, Outputs
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.data.special import Words
from bessemer.objectives._objective import Objective
from bessemer.objectives._segments import blanked, chances, counted, everywhere, in_place
from bessemer.objectives.meap import chance_of, mask_of
from bessemer.objectives.next_token import loss_of


class MaskedLanguage(Objective):
    """Predicts masked tokens where they stand, from the whole document (Devlin et al. 2019, "BERT").

    The trunk is used as an encoder: every token sees all of its document. Of the chosen tokens eight in ten are masked,
    one is replaced by any token of the vocabulary, and one is left as it is.

    Terms: `masked_language`, counted over the chosen tokens.

    Args:
        rate: the chance of each token to be chosen.
        keep, swap: of the chosen, the part that is left as it is and the part that is replaced.
        mask: the special token; auto: `<|mask|>`, or what the tokenizer has for it.
        chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer has no mask token, or the rate is none.
    """

    def __init__(self, *, rate: float = 0.15, keep: float = 0.1, swap: float = 0.1, mask: str = "auto", chunk: int | Auto = "auto") -> None:
        self.rate, self.keep, self.swap, self.mask, self.chunk = chance_of("rate", rate), keep, swap, mask, chunk

    def read(self, tokenizer: Words) -> None:
        self.blank, self.vocabulary = mask_of(tokenizer, self.mask), tokenizer.vocabulary_size

    def prepare(self, batch: Batch, seed: int) -> Batch:
        chosen = (chances(batch, seed, "masked language") < self.rate) & counted(batch)
        how = chances(batch, seed, "masked language: how")
        other = (chances(batch, seed, "masked language: which") * self.vocabulary).long().clamp(max=self.vocabulary - 1)
        read = blanked(in_place(batch), chosen & (how >= self.keep + self.swap), self.blank)
        read = torch.where(chosen & (how < self.swap), other, read)
        return replace(batch, tokens=read, open=everywhere(batch), weights={"masked_language": chosen.float()})

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        assert batch.targets is not None
        loss, _, _ = loss_of(outputs, outputs.hidden, batch.targets, batch.weights["masked_language"], 0.0, self.chunk)
        terms.add("masked_language", loss)
        return terms
