"""Patches and words, brought together one by one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.core.batch import Batch, Outputs
from bessemer.core.terms import Terms
from bessemer.objectives._contrast import gathered, groups, pairing
from bessemer.objectives.clip import CLIP, STREAM


class FILIP(CLIP):
    """CLIP, with the similarity of a pair made of every patch's best word and every word's best patch (Yao et al. 2021, "FILIP").

    A picture's likeness to a caption is the mean over its patches of the most similar word's similarity, a caption's to a
    picture the mean over its words of the most similar patch's. Claim: finer alignment of words and places at the same cost
    of inference.

    Terms and options: those of clip.
    """

    def embed_each(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of length 1 of patches [rows, per_row, patches, size] and words [rows, per_row, words, size], and which words there are."""
        states = self.view(outputs.hidden, batch)
        assert batch.segments is not None
        valid = self.view(batch.segments > 0, batch)[:, :, self.adapter.pieces :]
        patches = self.parts["picture"](states[:, :, : self.adapter.pieces])
        words = self.parts["caption"](states[:, :, self.adapter.pieces :])
        return F.normalize(patches.float(), dim=-1), F.normalize(words.float(), dim=-1), valid

    def sides(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        patches, words, valid = self.embed_each(outputs, batch)
        return {"patches": patches.flatten(0, 1), "words": words.flatten(0, 1), "valid": valid.flatten(0, 1)}

    def compare(self, pictures: dict[str, Tensor], captions: dict[str, Tensor]) -> Tensor:
        first = likeness_of_pictures(pictures["patches"], captions["words"], captions["valid"])
        return (first + likeness_of_captions(captions["words"], captions["valid"], pictures["patches"]).T) / 2

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        terms = Terms()
        patches, words, valid = self.embed_each(outputs, batch)
        rows, per_row = patches.shape[:2]
        same, mine = groups(rows, self.unit, per_row, self.ranks, patches.device)
        weights = batch.weights[STREAM].flatten()
        with torch.autocast(patches.device.type, enabled=False):
            scale = self.parts["scale"]()
            all_words, all_valid = gathered(words, self.ranks).flatten(0, 1), gathered(valid.float(), self.ranks).flatten(0, 1) > 0
            first = likeness_of_pictures(patches.flatten(0, 1), all_words, all_valid)
            all_patches = gathered(patches, self.ranks).flatten(0, 1)
            second = likeness_of_captions(words.flatten(0, 1), valid.flatten(0, 1), all_patches)
        one, hits = pairing(scale * first, same, mine, weights)
        other, _ = pairing(scale * second, same, mine, weights)
        terms.add(STREAM, (one + other) / 2)
        terms.add("matched", hits.detach(), over=STREAM, scale=0.0)
        return terms


def likeness_of_pictures(patches: Tensor, words: Tensor, valid: Tensor) -> Tensor:
    """[pictures, captions]: the mean over patches of the best word's similarity."""
    each = torch.einsum("pnd,cwd->pcnw", patches, words).masked_fill(~valid[None, :, None, :], -1.0)
    return each.amax(-1).mean(-1)


def likeness_of_captions(words: Tensor, valid: Tensor, patches: Tensor) -> Tensor:
    """[captions, pictures]: the mean over words of the best patch's similarity."""
    best = torch.einsum("cwd,pnd->cpwn", words, patches).amax(-1)
    share = valid.float() / valid.float().sum(-1, keepdim=True).clamp(min=1.0)
    return (best * share[:, None]).sum(-1)
