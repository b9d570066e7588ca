"""Views of a picture and its caption, each to tell of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.layers.linear import Linear
from bessemer.objectives._contrast import Scale, gathered, groups, pairing, pooled
from bessemer.objectives._examples import FromExamples, Piece, compose, pick, shuffled
from bessemer.objectives._views import views

STREAM = "pairs"


class M3I(FromExamples):
    """Maximises the mutual information of two masked views of a picture and of each with its caption, in one stage (Su et al. 2022, "M3I").

    The paper's formula has self-supervised, cross-modal and supervised pre-training as special cases; here its two terms are
    bounds from below by InfoNCE (van den Oord et al. 2018): between the views (self-supervised), and between views and caption
    (cross-modal). A view is a random crop of which a part of the patches is read. Groups of negatives are those of clip.

    Terms, over examples: `views` and `captions`, means of both directions' cross-entropy; an example without a caption counts
    for `views` alone.

    Args:
        group: rows whose examples are each other's negatives.
        keep: share of each view's patches that is read.
        size: of an embedding.
        words: the most tokens of a caption, its end included.
        temperature: where the learned temperatures begin.
        least: the least area of a crop.
        colour: how far brightness and channels vary.
        balance: factor of the captions' term; that of the views is 1.

    Raises:
        RecipeError: a number is out of range.
    """

    def __init__(
        self,
        *,
        group: int = 8,
        keep: float = 0.5,
        size: int = 64,
        words: int = 16,
        temperature: float = 0.1,
        least: float = 0.5,
        colour: float = 0.2,
        balance: float = 1.0,
    ) -> None:
        if min(group, size) < 1 or words < 2 or temperature <= 0 or not 0 < keep <= 1 or not 0 < least <= 1 or colour < 0:
            raise RecipeError("group, size and temperature are above 0, words at least 2, keep and least from above 0 to 1", key="objective")
        self.unit, self.keep, self.size, self.words, self.temperature = group, keep, size, words, temperature
        self.least, self.colour, self.balance = least, colour, balance

    @property
    def each(self) -> int:
        """Patches of a view that are read."""
        return max(1, round(self.keep * self.adapter.pieces))

    @property
    def columns(self) -> int:
        return 2 * self.each + self.words

    def prepare(self, batch: Batch, seed: int) -> Batch:
        draw = batch.streams["draw"]
        found = views(batch.streams[self.adapter.modality], draw, seed, 2, least=self.least, colour=self.colour, flip=False)
        pieces = []
        for number in range(2):
            seen = shuffled(seed, f"view {number}", draw, self.adapter.pieces)[..., : self.each].sort(-1).values
            pieces.append(Piece(segment=number, values=pick(self.adapter.cut(found[:, :, number]), seen), place=seen))
        made = compose(batch, [*pieces, Piece(segment=2, tokens=batch.streams["caption"])], self.adapter.stream)
        made.weights = {"views": torch.ones(draw.shape), "captions": (batch.streams["caption"] >= 0).any(-1).float()}
        return made

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {
            "view": Linear(width, self.size, axes=("none", "embed")),
            "picture": Linear(width, self.size, axes=("none", "embed")),
            "caption": Linear(width, self.size, axes=("none", "embed")),
            "scale": Scale(self.temperature),
            "scale_caption": Scale(self.temperature),
        }

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        assert batch.segments is not None
        states, valid = self.view(outputs.hidden, batch), self.view(batch.segments > 0, batch)
        parts = [slice(0, self.each), slice(self.each, 2 * self.each), slice(2 * self.each, None)]
        one, two, caption = (pooled(states[:, :, part], valid[:, :, part]) for part in parts)
        rows, per_row = one.shape[:2]
        both = groups(rows, self.unit, per_row, self.ranks, one.device)
        terms.add("views", self._between(self._unit("view", one), self._unit("view", two), both, batch.weights["views"], "scale"))
        said, sums = self._unit("caption", caption), []
        for picture in (one, two):
            sums.append(self._between(self._unit("picture", picture), said, both, batch.weights["captions"], "scale_caption"))
        terms.add("captions", (sums[0] + sums[1]) / 2, scale=self.balance)
        return terms

    def _unit(self, part: str, pool: Tensor) -> Tensor:
        return F.normalize(self.parts[part](pool).float(), dim=-1)

    def _between(self, a: Tensor, b: Tensor, both: tuple[Tensor, Tensor], weights: Tensor, scale: str) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            factor = self.parts[scale]()
            first = factor * a.flatten(0, 1) @ gathered(b, self.ranks).flatten(0, 1).T
            second = factor * b.flatten(0, 1) @ gathered(a, self.ranks).flatten(0, 1).T
        return (pairing(first, *both, weights.flatten())[0] + pairing(second, *both, weights.flatten())[0]) / 2
