"""Text in which spans are said in discrete units: what a model of speech and text is pre-trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy
import torch

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.data.rows import Array
from bessemer.data.special import SPEECH, TEXT, UNITS, Words, all_of, find
from bessemer.objectives._segments import draws, segments
from bessemer.objectives.meap import chance_of
from bessemer.objectives.next_token import NextToken


class Interleaved(NextToken):
    """Next token on documents in which some spans are written in discrete units (Zeng et al. 2024, "Scaling Speech-Text Pre-training").

    Claim: spoken question answering from 13% to 31%, with spans synthesised from text and no parallel speech.

    A span of tokens becomes `<|speech|>`, the units of its tokens, `<|text|>`, and the text goes on; so the model learns to continue
    text from speech and speech from text. Units are made from the tokens' bytes by a fixed map onto as many unit tokens as the tokenizer has,
    which, as speech does, tells apart less than writing; a text-to-token model of one's own goes into `units_of`. Documents keep
    their columns: what becomes longer loses its end.

    Terms: `next_token`, counted over all tokens, those of units among them.

    Args:
        rate: the part of a document's tokens that are said in units.
        span: mean tokens of a span.
        z, chunk: as in next_token.

    Raises:
        RecipeError: the tokenizer has no units, or an option is out of its range.
    """

    def __init__(self, *, rate: float = 0.3, span: float = 10.0, z: float = 0.0, chunk: int | Auto = "auto") -> None:
        super().__init__(z=z, chunk=chunk)
        self.rate, self.span = chance_of("rate", rate), span
        if span < 1:
            raise RecipeError(f"a span has at least 1 token, and {span} is given", key="task.objective.span")

    def read(self, tokenizer: Words) -> None:
        self.begin, self.end = find(tokenizer, SPEECH, "task.objective"), find(tokenizer, TEXT, "task.objective")
        units = all_of(tokenizer, UNITS, "task.objective", least=2)
        said = [[units[byte % len(units)] for byte in tokenizer.bytes_of(token)] or [token] for token in range(tokenizer.vocabulary_size)]
        self.said = [numpy.array(each, dtype=numpy.int64) for each in said]

    def units_of(self, tokens: Array) -> Array:
        """int64: the units of a span of text tokens; special tokens, which stand for no text, stay."""
        return numpy.concatenate([numpy.zeros(0, dtype=numpy.int64), *(self.said[token] for token in tokens.tolist())])

    def prepare(self, batch: Batch, seed: int) -> Batch:
        assert batch.targets is not None
        tokens, targets, by_row = batch.tokens.clone(), batch.targets.clone(), draws(batch, seed, "interleaved")
        for each in segments(batch):
            size = each.stop - each.start
            text = self.interleave(batch.targets[each.row, each.columns].numpy(), by_row[each.row])[:size]
            targets[each.row, each.columns] = torch.from_numpy(text)
            tokens[each.row, each.start + 1 : each.stop] = torch.from_numpy(text[:-1])
        return replace(batch, tokens=tokens, targets=targets)

    def interleave(self, document: Array, draw: numpy.random.Generator) -> Array:
        """int64, at least as long as the document: spans of it in units, the rest as it is."""
        parts, at = [], 0
        while at < len(document):
            gap = int(draw.geometric(min(1.0, self.rate / (self.span * (1 - self.rate)))))
            size = int(draw.geometric(1.0 / self.span))
            parts.append(document[at : at + gap])
            said = document[at + gap : at + gap + size]
            if len(said):
                parts += [numpy.array([self.begin]), self.units_of(said), numpy.array([self.end])]
            at += gap + size
        return numpy.concatenate([*parts, document[:0]])
