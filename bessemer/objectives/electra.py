"""Replaced tokens, detected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.data.special import Words
from bessemer.models.families.decoder import Decoder
from bessemer.models.layers.linear import Linear
from bessemer.objectives._objective import Objective
from bessemer.objectives._segments import blanked, chances, counted, everywhere, in_place
from bessemer.objectives.meap import chance_of, mask_of
from bessemer.objectives.next_token import loss_of


class Electra(Objective):
    """A small generator fills masked places, and the trunk tells which tokens it replaced (Clark et al. 2020, "ELECTRA").

    Claim: as good as RoBERTa and XLNet with less than a quarter of their compute, since every token teaches; most for small models.

    The generator is a bidirectional transformer of its own with its own embeddings, trained by masked language modelling; its samples pass no
    gradient. A token that it guessed right counts as original.

    Terms: `generator`, counted over the masked tokens, and `discriminator`, binary cross-entropy counted over all tokens; `found`,
    a figure only: the part of all tokens judged rightly.

    Args:
        rate: the chance of each token to be masked.
        weight: the discriminator's factor in the loss (50 in the paper).
        depth: the generator's layers.
        width: the generator's width; auto: a quarter of the trunk's, at least 32.
        mask: the special token; auto: `<|mask|>`, or what the tokenizer has for it.
        chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer has no mask token, or an option is out of its range.
    """

    def __init__(
        self, *, rate: float = 0.15, weight: float = 50.0, depth: int = 2, width: int | Auto = "auto", mask: str = "auto", chunk: int | Auto = "auto"
    ) -> None:
        self.rate, self.weight, self.depth, self.width = chance_of("rate", rate), weight, depth, width
        self.mask, self.chunk = mask, chunk
        if width != "auto" and (width < 2 or width % 2):
            raise RecipeError(f"the generator's width is even and at least 2, and {width} is given", key="task.objective.width")

    def read(self, tokenizer: Words) -> None:
        self.blank = mask_of(tokenizer, self.mask)

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        own = max(32, width // 4 // 32 * 32) if self.width == "auto" else self.width
        size = 32 if own % 32 == 0 else own
        generator = Decoder(vocabulary, depth=self.depth, width=own, heads=own // size, head_size=size)
        return {
            "generator": generator,
            "dense": Linear(width, width, axes=("none", "embed"), bias=True),
            "verdict": Linear(width, 1, axes=("none", "embed"), bias=True, role="head"),
        }

    def prepare(self, batch: Batch, seed: int) -> Batch:
        allowed = counted(batch)
        chosen = (chances(batch, seed, "electra") < self.rate) & allowed
        weights = {"generator": chosen.float(), "discriminator": allowed.float()}
        streams = batch.streams | {"chance": chances(batch, seed, "electra: sample")}
        return replace(batch, tokens=in_place(batch), open=everywhere(batch), weights=weights, streams=streams)

    def before(self, batch: Batch) -> Batch:
        chosen = batch.weights["generator"] > 0
        generator: Any = self.parts["generator"]
        guessed = generator(replace(batch, tokens=blanked(batch.tokens, chosen, self.blank)))
        tokens = batch.tokens.clone()
        with torch.no_grad():
            tokens[chosen] = sampled(guessed.head(guessed.hidden[chosen]), batch.streams["chance"][chosen])
        return replace(batch, tokens=tokens, streams=batch.streams | {"generator": guessed.hidden})

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms, targets = Terms(), batch.targets
        assert targets is not None
        generator: Any = self.parts["generator"]
        hidden = batch.streams["generator"]
        loss, _, _ = loss_of(Outputs(hidden, generator.head), hidden, targets, batch.weights["generator"], 0.0, self.chunk)
        terms.add("generator", loss)
        verdict = self.parts["verdict"](F.gelu(self.parts["dense"](outputs.hidden)))[..., 0].float()
        replaced, weights = (batch.tokens != targets).float(), batch.weights["discriminator"]
        losses = F.binary_cross_entropy_with_logits(verdict, replaced, reduction="none")
        terms.add("discriminator", (losses * weights).sum(), scale=self.weight)
        terms.add("found", (((verdict > 0) == (replaced > 0)) * weights).sum(), over="discriminator", scale=0.0)
        return terms


def sampled(logits: Tensor, chance: Tensor) -> Tensor:
    """int64 [count]: tokens drawn from logits [count, vocabulary] by one uniform number each, so the draw is the batch's and not the device's."""
    edges = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(edges, chance.double()[:, None]).clamp(max=logits.shape[-1] - 1)[:, 0]
