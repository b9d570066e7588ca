"""The text of the joint benchmark: bytes of Python sources, and a word for each of the captions'."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch

from bessemer.core import rng
from bessemer.core.batch import Batch

LENGTH = 192
"""Columns of a row."""


class Words:
    """Bytes for text, and an id for each word of the captions."""

    begin, end, pad, vocabulary_size = 0, 1, 2, 320
    special_ids: dict[str, int] = {}

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, 256 + len(self.ids)) for word in text.split()]


class Bytes:
    """Rows of the standard library's sources; the last twentieth is held out."""

    def __init__(self, held_out: bool = False) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        whole = np.frombuffer(b"".join(file.read_bytes() for file in files)[:6_000_000], dtype=np.uint8)
        edge = len(whole) * 19 // 20
        self.data, self.seed = (whole[edge:] if held_out else whole[:edge]), int(held_out)

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        sample = np.arange(start, start + rows)
        first = (rng.uniforms(self.seed, sample, 1)[:, 0] * (len(self.data) - LENGTH - 1)).astype(np.int64)
        found = torch.from_numpy(np.stack([self.data[at : at + LENGTH + 1] for at in first]).astype(np.int64))
        columns = torch.arange(LENGTH).expand(rows, LENGTH)
        weights = {"next_token": torch.ones(rows, LENGTH)}
        return Batch(found[:, :-1], columns, torch.ones_like(columns), found[:, 1:], weights, samples=torch.from_numpy(sample), task="text")
