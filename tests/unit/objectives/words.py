"""A tokenizer of few words, and what some objectives need, for the tests of objectives."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from bessemer.core.artifact import seal
from bessemer.core.batch import Batch
from bessemer.data.special import BLANKS, EXTREME, MASK, REGULAR, SEQUENTIAL, SPEECH, TEXT, UNITS
from bessemer.models.families.decoder import Decoder
from bessemer.models.package import save_model
from tests.folders import folder as new_folder

SIZE = 64
"""The whole vocabulary; the last 22 are special."""


NAMES = (MASK, REGULAR, SEQUENTIAL, EXTREME, SPEECH, TEXT, *BLANKS[:8], *UNITS[:8])


class Words:
    """What objectives ask of a tokenizer; every ordinary token stands for one or two bytes."""

    vocabulary_size = SIZE
    special_ids = {name: SIZE - len(NAMES) + place for place, name in enumerate(NAMES)}

    def bytes_of(self, id: int) -> bytes:
        return b"" if id in self.special_ids.values() else bytes([97 + id % 26] * (1 + id % 2))


@cache
def model(seed: int = 5, **options) -> Path:
    """The folder of a model of random weights."""
    folder = new_folder()
    save_model(Decoder(SIZE, seed, **({"depth": 2, "width": 32, "heads": 2, "ffn": 64} | options)), folder)
    seal(folder, "model", recipe={}, parents={}, info={})
    return folder


def options(name: str) -> dict:
    """The options an objective can't do without."""
    return {"teacher": str(model())} if name == "self_distill" else {}


def dressed(name: str, batch: Batch, keep: int = 5) -> Batch:
    """The batch with the streams that an objective finds beside it."""
    if name == "sparse_distill":
        draw = torch.Generator().manual_seed(3)
        logs, ids = torch.randn(512, SIZE, generator=draw).log_softmax(-1).topk(keep)
        place = (batch.tokens * 7 + torch.arange(batch.tokens.shape[1])) % 512
        batch.streams = batch.streams | {"teacher_ids": ids[place], "teacher_logs": logs[place]}
    return batch
