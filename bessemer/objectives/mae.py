"""Hidden patches of a picture, filled in by a decoder from those the trunk saw."""

from __future__ import annotations

import torch
from torch import nn

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.objectives._examples import FromExamples, Piece, compose, pick, shuffled
from bessemer.objectives._reconstruct import Decoder, normalised

STREAM = "mae"


class MAE(FromExamples):
    """The trunk reads only the patches left visible; a small decoder predicts the others' values (He et al. 2021, "Masked Autoencoders").

    Claim: at three quarters hidden, pre-training is three times as fast and more accurate than with blanks in the trunk.

    Term: `mae`, the mean squared difference over a hidden patch's values, counted over hidden patches.

    Args:
        ratio: share of patches that are hidden.
        width, depth: of the decoder; the width is a multiple of 32.
        normalise: predict each patch's values with their mean taken off and their deviation scaled to 1.

    Raises:
        RecipeError: the ratio leaves nothing to see or nothing to predict, or the decoder's sizes can't be.
    """

    def __init__(self, *, ratio: float = 0.75, width: int = 64, depth: int = 1, normalise: bool = True) -> None:
        if not 0.0 < ratio < 1.0:
            raise RecipeError(f"a share between 0 and 1 is wanted, and {ratio} is given", key="objective.ratio")
        if width < 32 or width % 32 or depth < 0:
            raise RecipeError(
                f"a decoder of width {width} and depth {depth} can't be", key="objective.width", mend="a multiple of 32, and a depth from 0"
            )
        self.ratio, self.width, self.depth, self.normalise = ratio, width, depth, normalise

    @property
    def columns(self) -> int:
        return max(1, round((1.0 - self.ratio) * self.adapter.pieces))

    def prepare(self, batch: Batch, seed: int) -> Batch:
        values = self.raw(batch)
        order = shuffled(seed, "seen", batch.streams["draw"], self.adapter.pieces)
        seen = order[..., : self.columns].sort(-1).values
        hidden = torch.ones(order.shape).scatter(2, seen, 0.0)
        made = compose(batch, [Piece(values=pick(values, seen), place=seen)], self.adapter.stream, target=values)
        made.weights[STREAM] = hidden
        return made

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {"decoder": Decoder(width, self.width, self.depth, self.adapter.pieces, self.adapter.size)}

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        wanted = batch.streams["target"].flatten(0, 1)
        states = self.view(outputs.hidden, batch).flatten(0, 1)
        seen = self.held(batch, "_place").flatten(0, 1)
        found = self.parts["decoder"](states, seen)
        gap = (found - (normalised(wanted) if self.normalise else wanted)).square().mean(-1)
        terms.add(STREAM, (gap * batch.weights[STREAM].flatten(0, 1)).sum())
        return terms
