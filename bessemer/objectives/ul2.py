"""Several ways of denoising in one: short spans, long spans and endings, each announced by a token."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy
import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError, neighbours
from bessemer.core.registry import Auto
from bessemer.data.rows import Array
from bessemer.data.special import BLANKS, EXTREME, REGULAR, SEQUENTIAL, Words, all_of, find
from bessemer.objectives._segments import draws, segments
from bessemer.objectives.next_token import STREAM, NextToken

SPANS = {"regular": ((3.0, 0.15), (8.0, 0.15)), "extreme": ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))}
"""(mean span length, corrupted part) of each denoiser (table 1 of the paper)."""
MODES = {"regular": REGULAR, "sequential": SEQUENTIAL, "extreme": EXTREME}
SHORTEST = 8
"""Documents of fewer tokens have no room for spans and blanks; they are continued instead."""


class Denoised(NamedTuple):
    """A document rearranged: `text` is read up to its last token and predicted from its second on.

    Attributes:
        text: int64 [length + 1].
        prefix: its first tokens, which see each other both ways.
        learned: the first column whose target counts.
    """

    text: Array
    prefix: int
    learned: int


class UL2(NextToken):
    """A mixture of denoisers with mode tokens, in prefix form (Tay et al. 2022, "UL2: Unifying Language Learning Paradigms").

    Claim: better than T5-like and GPT-like training over diverse setups.

    Every document draws a denoiser and begins with its mode token. Regular and extreme ones take spans out of the text, put numbered
    blanks in their place, and have the spans written after it, each behind its blank. The sequential one has the text continued. What stands before the
    answer is open: its tokens see each other both ways. All happens within the columns that the document has, so the blanks' places are taken
    from its end: the last tokens are left out.

    Terms: `next_token`, counted over the answers' tokens.

    Args:
        shares: how often "regular", "sequential" and "extreme" come, of any scale.
        z, chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer lacks mode tokens or blanks, or a share is wrong.
    """

    def __init__(
        self,
        *,
        shares: dict[str, float | int] = {"regular": 2, "sequential": 1, "extreme": 4},
        z: float = 0.0,
        chunk: int | Auto = "auto",
    ) -> None:
        super().__init__(z=z, chunk=chunk)
        for name, share in shares.items():
            if name not in MODES:
                raise RecipeError(f"there is no denoiser '{name}'", key=f"task.objective.shares.{name}", mend=neighbours(name, MODES))
            if not 0 <= share < float("inf"):
                raise RecipeError(f"a share is a number from 0 up, and {share} is given", key=f"task.objective.shares.{name}")
        if not sum(shares.values()) > 0:
            raise RecipeError("the shares sum to zero", key="task.objective.shares")
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items()}

    def read(self, tokenizer: Words) -> None:
        self.modes = {name: find(tokenizer, MODES[name], "task.objective") for name in {**self.shares, "sequential": 0.0}}
        self.blanks = numpy.array(all_of(tokenizer, BLANKS, "task.objective", least=2), dtype=numpy.int64)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        assert batch.targets is not None
        tokens, targets = batch.tokens.clone(), batch.targets.clone()
        learned, prefix = torch.zeros_like(batch.weights[STREAM]), torch.zeros_like(tokens, dtype=torch.bool)
        by_row = draws(batch, seed, "ul2")
        for each in segments(batch):
            made = self.denoise(batch.targets[each.row, each.columns].numpy(), by_row[each.row])
            text = torch.from_numpy(made.text)
            tokens[each.row, each.columns], targets[each.row, each.columns] = text[:-1], text[1:]
            prefix[each.row, each.start : each.start + made.prefix] = True
            learned[each.row, each.start + made.learned : each.stop] = 1.0
        return replace(batch, tokens=tokens, targets=targets, open=prefix, weights={STREAM: learned})

    def denoise(self, document: Array, draw: numpy.random.Generator) -> Denoised:
        """A document of n tokens as n + 1 tokens of task and answer."""
        mode = str(draw.choice(list(self.shares), p=list(self.shares.values())))
        if mode != "sequential" and len(document) >= SHORTEST:
            mean, part = SPANS[mode][int(draw.integers(len(SPANS[mode])))]
            return self._spans(self.modes[mode], document, mean, part, draw)
        ending = int(draw.integers(1, max(1, len(document) // 2) + 1))
        prefix = 1 + len(document) - ending
        return Denoised(numpy.concatenate([[self.modes["sequential"]], document]), prefix, prefix - 1)

    def _spans(self, mode: int, document: Array, mean: float, part: float, draw: numpy.random.Generator) -> Denoised:
        count = max(1, min(round(len(document) * part / mean), len(self.blanks) - 1, (len(document) - 1) // 4))
        document = document[: len(document) - 1 - 2 * count]  # the mode, and each blank twice, and one after the last
        masked = min(max(round(len(document) * part), count), len(document) - count)
        kept, hidden = _cut(len(document) - masked + 2, count + 1, draw), _cut(masked, count, draw)
        kept[[0, -1]] -= 1  # a span may begin the document or end it; where it always does, one alone would have nothing to its right
        edges = numpy.cumsum(numpy.concatenate([numpy.stack([kept[:-1], hidden], axis=1).ravel(), kept[-1:]]))
        parts = numpy.split(document, edges[:-1])
        task = [piece for span, blank in zip(parts[:-1:2], self.blanks, strict=False) for piece in (span, [blank])]
        answer = [piece for span, blank in zip(parts[1::2], self.blanks, strict=False) for piece in ([blank], span)]
        text = numpy.concatenate([[mode], *task, parts[-1], *answer, [self.blanks[count]]]).astype(numpy.int64)
        prefix = 1 + len(document) - masked + count
        return Denoised(text, prefix, prefix)


def _cut(total: int, parts: int, draw: numpy.random.Generator) -> Array:
    """int64 [parts]: numbers above 0 that sum to `total`, all such equally likely."""
    edges = numpy.sort(draw.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else numpy.zeros(0, dtype=numpy.int64)
    return numpy.diff(numpy.concatenate([[0], edges, [total]]))
