"""The decoding loop: ragged rows through the model, one new column at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bessemer.core.batch import Batch
from bessemer.serve.cache import Cache
from bessemer.serve.row import Row
from bessemer.serve.sampler import Sampling, draw, pick


class Decoding:
    """Writes several rows at once.

    Prompts are padded on the left, so all rows stand at the same column; positions start at each row's first token, which
    is all that masks need. Rows that have ended go once they are half of the batch.

    Args:
        model: Batch and Cache -> Outputs, in evaluation mode.
        rows: the texts, their prompts read.
        how: how tokens are picked.
        vocabulary: tokens from this number on are padding of the model's table and never picked.
        scored: keep each token's log-probability.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Row], how: Sampling, vocabulary: int, scored: bool) -> None:
        self.model, self.rows, self.how, self.vocabulary, self.scored = model, list(rows), how, vocabulary, scored
        self.device = next(model.parameters()).device
        self.longest = longest = max(len(row.read) for row in self.rows)
        self.cache = Cache(longest + max(row.most for row in self.rows), longest_look(model))
        padding = [longest - len(row.read) for row in self.rows]
        self.written = 0
        self.next = torch.tensor([[0] * pad + row.read for pad, row in zip(padding, self.rows, strict=True)], device=self.device)
        place = torch.arange(longest, device=self.device) - torch.tensor(padding, device=self.device)[:, None]
        self.positions, self.segments = place.clamp(min=0), (place >= 0).long()
        self.seen = self._seen() if how.remembers else None

    def run(self) -> Iterator[list[tuple[Row, int]]]:
        """Each step's rows with their new tokens; the caller adds them to the rows and says so by `row.finish`."""
        while any(row.finish is None for row in self.rows):
            tokens = self._step()
            yield [(row, token) for row, token in zip(self.rows, tokens, strict=True) if row.finish is None]
            self._drop_finished()

    @torch.inference_mode()
    def _step(self) -> list[int]:
        self.cache.make_room(self.next.shape[1])
        ragged = any(len(row.read) < self.longest for row in self.rows)
        outputs = self.model(Batch(self.next, self.positions, self.segments if ragged else None), self.cache)
        self.cache.advance()
        logits = outputs.head(outputs.hidden[:, -1])[:, : self.vocabulary]
        draws = None
        if not self.how.greedy:
            draws = torch.tensor(draw([row.key for row in self.rows], self.written), dtype=torch.float64, device=self.device)
        chosen = pick(logits, draws, self.how, self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        if self.scored:
            self._score(logits, chosen)
        self.next, self.positions, self.segments = chosen[:, None], self.positions[:, -1:] + 1, self.segments[:, -1:]
        self.written += 1
        return chosen.tolist()

    def _score(self, logits: Tensor, chosen: Tensor) -> None:
        values = logits.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0].tolist()
        for row, value in zip(self.rows, values, strict=True):
            if row.finish is None:
                row.log_probabilities.append(value)

    @torch.inference_mode()
    def _drop_finished(self) -> None:
        going = [place for place, row in enumerate(self.rows) if row.finish is None]
        if not going or 2 * len(going) > len(self.rows):
            return
        rows = torch.tensor(going, device=self.device)
        self.cache.keep(rows)
        self.next, self.positions, self.segments = self.next[rows], self.positions[rows], self.segments[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        self.rows = [self.rows[place] for place in going]

    def _seen(self) -> Tensor:
        seen = torch.zeros(len(self.rows), self.vocabulary, dtype=torch.bool, device=self.device)
        for place, row in enumerate(self.rows):
            seen[place, row.read] = True
        return seen


def longest_look(model: nn.Module) -> int | None:
    """The columns a new token looks back at, itself counted, when every layer has a window; else None."""
    windowed = getattr(model, "windowed", [])
    return int(model.options["window"]) if windowed and all(windowed) else None  # type: ignore[index, arg-type, operator]
