"""Examples as batches: a pure function from row numbers to raw values and captions."""

from __future__ import annotations

import numpy as np
import torch

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.core.errors import DataError
from bessemer.data.example import Array
from bessemer.data.example_store import Examples
from bessemer.data.tokenizer import Tokenizer


class ExampleLoader:
    """Row n holds the examples n x per_row to (n + 1) x per_row of the task's endless order: epoch after epoch, each in another keyed order.

    Its batches hold no rows yet that a model could read, but the streams an objective's `prepare` makes them from:
    the modality's raw values [rows, per_row, *shape]; "caption" int64 [rows, per_row, words], ended by the end token, -1 after
    it; "begin" int64 [rows], the id a caption's first token is predicted from; "draw" int64 [rows, per_row], the place in the
    endless order, by which everything random is keyed; "example" int64 [rows, per_row], its number in the store.

    Args:
        modality: which values.
        per_row: examples of a row.
        length: columns of the rows to be made.
        words: the most tokens of a caption, its end included; longer ones are cut. 0: captions are left out.

    Raises:
        DataError: no example has what is asked for.
    """

    def __init__(
        self,
        store: Examples,
        tokenizer: Tokenizer,
        *,
        modality: str,
        per_row: int,
        length: int,
        words: int = 0,
        seed: int = 0,
        part: str = "train",
        task: str = "pictures",
    ) -> None:
        self.store, self.tokenizer, self.modality, self.per_row, self.length = store, tokenizer, modality, per_row, length
        self.words, self.seed, self.task = words, seed, task
        self.found = store.members(part, modality, captioned=words > 0)
        if not len(self.found):
            what = f"a {modality}{' and a caption' if words else ''}"
            raise DataError(f"no example of the {part} part has {what}", file=store.folder, key=task, mend="give the task other examples")
        self.epoch = -(-len(self.found) // per_row)

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows `start` to `start + rows`, or one rank's contiguous block of them."""
        sample = np.arange(start + rows * rank // ranks, start + rows * (rank + 1) // ranks, dtype=np.int64)
        return self.batch_of(sample)

    def batch_of(self, sample: Array) -> Batch:
        """The batch of any rows, by number."""
        draw = sample[:, None] * self.per_row + np.arange(self.per_row)
        number = self.found[self._places(draw)]
        streams = {
            self.modality: torch.from_numpy(self.store.take(self.modality, number)),
            "draw": torch.from_numpy(draw),
            "example": torch.from_numpy(number),
        }
        if self.words:
            texts = [self.store.texts[each] for each in number.ravel()]
            streams["caption"] = encoded(self.tokenizer, texts, self.words).view(*number.shape, self.words)
            streams["begin"] = torch.full((len(sample),), self.tokenizer.begin)
        tokens = torch.full((len(sample), self.length), self.tokenizer.pad)
        samples = torch.from_numpy(sample)
        return Batch(tokens, torch.zeros_like(tokens), torch.zeros_like(tokens), streams=streams, samples=samples, task=self.task)

    def _places(self, draw: Array) -> Array:
        epoch, place = np.divmod(draw, len(self.found))
        found = np.empty_like(place)
        for number in np.unique(epoch).tolist():
            mine = epoch == number
            found[mine] = rng.permute(place[mine], len(self.found), rng.key(self.seed, "examples", self.task, number))
        return found


def encoded(tokenizer: Tokenizer, texts: list[str], words: int) -> torch.Tensor:
    """Each caption's tokens and the end token, cut to `words` of them: int64 [captions, words], -1 after the end."""
    found = np.full((len(texts), words), -1, dtype=np.int64)
    for place, text in enumerate(texts):
        ids = [*list(tokenizer.encode(text))[: words - 1], tokenizer.end]
        found[place, : len(ids)] = ids
    return torch.from_numpy(found)
