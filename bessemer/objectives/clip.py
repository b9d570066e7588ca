"""Pictures and their captions, brought together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.terms import Terms
from bessemer.models.layers.linear import Linear
from bessemer.objectives._contrast import Scale, gathered, groups, pairing, pooled
from bessemer.objectives._examples import FromExamples, Piece, compose

STREAM = "pairs"


class CLIP(FromExamples):
    """Each picture is to find its caption among those of its group, and each caption its picture (Radford et al. 2021, "CLIP").

    Picture and caption are two segments of a row, read by the same trunk in both directions; the mean of a segment's states,
    projected, is its embedding. Negatives are the group's: `group` rows of neighbouring samples, over all ranks that share
    a micro-batch (see _contrast.py). Two pictures of one caption in a group count as different.

    Terms, over pairs: `pairs`, the mean of both directions' cross-entropy; `matched`, as a figure only, how often a picture's
    own caption comes first.

    Args:
        group: rows whose pairs are each other's negatives.
        size: of an embedding.
        words: the most tokens of a caption, its end included.
        temperature: where the learned temperature begins.

    Raises:
        RecipeError: a number is too small.
    """

    def __init__(self, *, group: int = 8, size: int = 64, words: int = 16, temperature: float = 0.07) -> None:
        if min(group, size) < 1 or words < 2 or temperature <= 0:
            problem = f"group = {group}, size = {size}, words = {words} and temperature = {temperature} can't be"
            raise RecipeError(problem, key="objective")
        self.unit, self.size, self.words, self.temperature = group, size, words, temperature

    @property
    def columns(self) -> int:
        return self.adapter.pieces + self.words

    def prepare(self, batch: Batch, seed: int) -> Batch:
        made = compose(batch, self.pieces(self.raw(batch), batch.streams["caption"]), self.adapter.stream)
        made.weights[STREAM] = (batch.streams["caption"] >= 0).any(-1).float()
        return made

    def pieces(self, values: Tensor, caption: Tensor) -> list[Piece]:
        """A picture in its segment, a caption in another; both seen whole."""
        return [Piece(segment=0, values=values), Piece(segment=1, tokens=caption)]

    def modules(self, width: int, vocabulary: int) -> dict[str, nn.Module]:
        return {
            "picture": Linear(width, self.size, axes=("none", "embed")),
            "caption": Linear(width, self.size, axes=("none", "embed")),
            "scale": Scale(self.temperature),
        }

    def embed(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of length 1 of pictures and of captions: float32 [rows, per_row, size] each."""
        states, valid = self.view(outputs.hidden, batch), self.view(_valid(batch), batch)
        count = self.adapter.pieces
        picture = self.parts["picture"](pooled(states[:, :, :count], valid[:, :, :count]))
        caption = self.parts["caption"](pooled(states[:, :, count:], valid[:, :, count:]))
        return F.normalize(picture.float(), dim=-1), F.normalize(caption.float(), dim=-1)

    def sides(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """What evaluations keep of a batch's pictures and captions: tensors with one entry for each example."""
        picture, caption = self.embed(outputs, batch)
        return {"picture": picture.flatten(0, 1), "caption": caption.flatten(0, 1)}

    def compare(self, pictures: dict[str, Tensor], captions: dict[str, Tensor]) -> Tensor:
        """float32 [pictures, captions]: how alike they are, from what `sides` gave."""
        return pictures["picture"] @ captions["caption"].T

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        pictures, captions = self.embed(outputs, batch)
        rows, per_row = pictures.shape[:2]
        same, mine = groups(rows, self.unit, per_row, self.ranks, pictures.device)
        weights = batch.weights[STREAM].flatten()
        with torch.autocast(pictures.device.type, enabled=False):
            scale = self.parts["scale"]()
            first = scale * pictures.flatten(0, 1) @ gathered(captions, self.ranks).flatten(0, 1).T
            second = scale * captions.flatten(0, 1) @ gathered(pictures, self.ranks).flatten(0, 1).T
        one, hits = pairing(first, same, mine, weights)
        other, _ = pairing(second, same, mine, weights)
        terms.add(STREAM, (one + other) / 2)
        terms.add("matched", hits.detach(), over=STREAM, scale=0.0)
        return terms


def _valid(batch: Batch) -> Tensor:
    return torch.ones_like(batch.tokens, dtype=torch.bool) if batch.segments is None else batch.segments > 0
