"""Text by diffusion: tokens masked at any rate, predicted from what is left."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bessemer.core import rng
from bessemer.core.batch import Batch, Outputs
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.data.special import Words
from bessemer.objectives._objective import Objective
from bessemer.objectives._segments import blanked, chances, counted, everywhere, in_place, segments
from bessemer.objectives.meap import mask_of
from bessemer.objectives.next_token import loss_of

GOLDEN, PLASTIC = 0.6180339887498949, 0.7548776662466927
LEAST = 1e-3
"""The least time: below it a document would seldom have a masked token, and a heavy one."""


class MaskedDiffusion(Objective):
    """Masked-diffusion language modelling: a bound on the likelihood from tokens masked at random rates (Sahoo et al. 2024; Nie et al. 2025, "LLaDA").

    Each document draws a time t in (0, 1]; each of its tokens is masked with chance t and, if it is, predicted where it stands
    from all the others, its loss weighing 1 / t. The mean over all tokens, masked or not, is an upper bound on the nats per token
    under any order of generation (for the linear noise schedule, in continuous time). Times of successive rows, and of the documents of a
    row, are spread evenly by irrational steps, which lowers the variance of the gradient.

    Terms: `masked_diffusion`, counted over all tokens.

    Args:
        mask: the special token; auto: `<|mask|>`, or what the tokenizer has for it.
        chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer has no mask token.
    """

    def __init__(self, *, mask: str = "auto", chunk: int | Auto = "auto") -> None:
        self.mask, self.chunk = mask, chunk

    def read(self, tokenizer: Words) -> None:
        self.blank = mask_of(tokenizer, self.mask)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        times = self._times(batch, seed)
        chosen = (chances(batch, seed, "diffusion") < times) & counted(batch)
        return replace(
            batch,
            tokens=blanked(in_place(batch), chosen, self.blank),
            open=everywhere(batch),
            weights={"masked_diffusion": counted(batch).float()},
            streams=batch.streams | {"bound": chosen / times},
        )

    def _times(self, batch: Batch, seed: int) -> Tensor:
        """float32 [rows, length]: each document's time, even over successive rows and over the documents of a row."""
        assert batch.samples is not None
        times, row, number = torch.ones(batch.tokens.shape), -1, 0
        first = float(rng.numpy_generator(seed, "diffusion times", batch.task).random())
        for each in segments(batch):
            row, number = each.row, number + 1 if each.row == row else 0
            even = (first + int(batch.samples[row]) * GOLDEN + number * PLASTIC) % 1.0
            times[row, each.columns] = 1.0 - (1.0 - LEAST) * even
        return times

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        assert batch.targets is not None
        loss, _, _ = loss_of(outputs, outputs.hidden, batch.targets, batch.streams["bound"], 0.0, self.chunk)
        terms.add("masked_diffusion", loss)
        return terms
