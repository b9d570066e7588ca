"""Captions written from pictures."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.core.terms import Terms
from bessemer.objectives._examples import FromExamples, Piece, compose
from bessemer.objectives.next_token import loss_of

STREAM = "captioning"


class Captioning(FromExamples):
    """The caption's tokens one after the other, the picture before them seen whole (Tschannen et al. 2023, "Image Captioners Are Scalable Vision Learners Too").

    Picture and caption are one segment: the picture's columns are open to all of it, the caption's are causal.

    Term: `captioning`, the cross-entropy of a caption's tokens and its end, counted over them.

    Args:
        words: the most tokens of a caption, its end included.
        chunk: tokens whose logits are formed at a time; auto keeps them near the cache.

    Raises:
        RecipeError: words are too few.
    """

    def __init__(self, *, words: int = 16, chunk: int | Auto = "auto") -> None:
        if words < 2:
            raise RecipeError(f"a caption has at least a token and its end, and words = {words}", key="objective.words")
        self.words, self.chunk = words, chunk

    @property
    def columns(self) -> int:
        return self.adapter.pieces + self.words

    def prepare(self, batch: Batch, seed: int) -> Batch:
        caption = batch.streams["caption"]
        begin = batch.streams["begin"][:, None].expand(caption.shape[:2])
        read = F.pad(caption[..., :-1], (1, 0))
        read[..., 0] = begin
        valid = caption >= 0
        text = Piece(open=False, tokens=torch.where(valid, read, -1), targets=caption.clamp(min=0), weights={STREAM: valid.float()})
        return compose(batch, [Piece(values=self.raw(batch)), text], self.adapter.stream)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        assert batch.targets is not None
        columns = slice(self.adapter.pieces, None)
        hidden = self.view(outputs.hidden, batch)[:, :, columns].flatten(1, 2)
        targets = self.view(batch.targets, batch)[:, :, columns].flatten(1, 2)
        weights = self.view(batch.weights[STREAM], batch)[:, :, columns].flatten(1, 2)
        loss, _, _ = loss_of(outputs, hidden, targets, weights, 0.0, self.chunk)
        terms.add(STREAM, loss)
        return terms
