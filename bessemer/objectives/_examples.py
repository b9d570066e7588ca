"""From raw examples to rows a trunk can read: pieces of each example side by side in a fixed number of columns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.models.adapters._adapter import VECTORS
from bessemer.objectives._objective import Objective


class FromExamples(Objective):
    """An objective that learns from examples rather than from a token store: `prepare` makes its rows.

    Every example takes `columns` columns, and a row holds as many examples as fit. Raw batches are those of
    data/example_loader.py.

    Attributes:
        words: the most tokens of a caption, its end included; 0 where captions aren't read.
    """

    words: int = 0

    @property
    @abstractmethod
    def columns(self) -> int:
        """Columns of one example; needs the adapter."""

    def raw(self, batch: Batch) -> Tensor:
        """The adapter's modality, cut: [rows, per_row, pieces, size]."""
        return self.adapter.cut(batch.streams[self.adapter.modality])

    def held(self, batch: Batch, what: str = "") -> Tensor:
        """One of the adapter's streams by example, [rows, per_row, columns, ...], for objectives whose every column holds a value."""
        return self.view(batch.streams[f"{self.adapter.stream}{what}"], batch)

    def view(self, values: Tensor, batch: Batch) -> Tensor:
        """[rows, length, ...] as [rows, per_row, columns, ...]."""
        rows, per_row = batch.streams["draw"].shape
        return values[:, : per_row * self.columns].reshape(rows, per_row, self.columns, *values.shape[2:])


@dataclass
class Piece:
    """Some neighbouring columns of every example.

    Attributes:
        segment: which of the example's segments they belong to; attention stays inside a segment.
        open: whether all of the segment may look at them, or only what comes after.
        tokens: int64 [rows, per_row, columns], -1 where there is nothing.
        targets: int64 of the same shape.
        values: float32 [rows, per_row, columns, size]: the adapter's.
        place: int64 [rows, per_row, columns]: the values' places in the adapter's grid; None: they are all of them in order.
        blank: bool [rows, per_row, columns]: which values the model is not to see.
        vector: whether it is one column for a vector that the objective makes on the device.
        weights: streams of [rows, per_row, columns].
    """

    segment: int = 0
    open: bool = True
    tokens: Tensor | None = None
    targets: Tensor | None = None
    values: Tensor | None = None
    place: Tensor | None = None
    blank: Tensor | None = None
    vector: bool = False
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        held = self.tokens if self.tokens is not None else self.values
        return 1 if held is None else held.shape[2]


def compose(batch: Batch, pieces: list[Piece], stream: str, **streams: Tensor) -> Batch:
    """The rows made of some pieces of each example; raw streams are left behind.

    Args:
        stream: the adapter's.
        streams: what else the objective wants to find in the batch, rows first.
    """
    draw = batch.streams["draw"]
    rows, per_row = draw.shape
    length = batch.tokens.shape[1]
    made = [_lay(piece, batch, _before(pieces, number), 1 + max(p.segment for p in pieces)) for number, piece in enumerate(pieces)]
    places = sum(piece.columns for piece in pieces if piece.values is not None)

    def joined(name: str, fill: int | bool | float) -> Tensor:
        flat = torch.cat([each[name] for each in made], 2).reshape(rows, -1)
        return F.pad(flat, (0, length - flat.shape[1]), value=fill)

    index = torch.arange(per_row)[:, None] * places
    offset, found = 0, []
    for piece in pieces:
        count = piece.columns
        numbered = index + offset + torch.arange(count) if piece.values is not None else torch.full((per_row, count), -1)
        found.append(numbered.expand(rows, per_row, count))
        offset += count if piece.values is not None else 0
    for each, numbers in zip(made, found, strict=True):
        each["index"] = numbers
    held = {"draw": draw, **streams}
    if places:
        held |= _values(pieces, stream, rows, per_row) | {f"{stream}_index": joined("index", -1)}
    if any(piece.vector for piece in pieces):
        held[f"{VECTORS}_index"] = joined("vector", -1)
    names = list(dict.fromkeys(name for piece in pieces for name in piece.weights))
    for name in names:
        for piece, each in zip(pieces, made, strict=True):
            each[name] = piece.weights.get(name, torch.zeros(rows, per_row, piece.columns))
    return replace(
        batch,
        tokens=joined("tokens", int(batch.tokens[0, 0]) if batch.tokens.numel() else 0),
        positions=joined("positions", 0),
        segments=joined("segments", 0),
        open=joined("open", False),
        targets=joined("targets", 0),
        weights={name: joined(name, 0.0) for name in names},
        streams=held,
    )


def _before(pieces: list[Piece], number: int) -> int:
    """Columns of the same segment that stand before a piece."""
    return sum(piece.columns for piece in pieces[:number] if piece.segment == pieces[number].segment)


def _lay(piece: Piece, batch: Batch, before: int, segments: int) -> dict[str, Tensor]:
    """What one piece puts into the batch's fields: each [rows, per_row, columns]."""
    rows, per_row = batch.streams["draw"].shape
    shape = (rows, per_row, piece.columns)
    pad = int(batch.tokens[0, 0]) if batch.tokens.numel() else 0
    valid = torch.ones(shape, dtype=torch.bool) if piece.tokens is None else piece.tokens >= 0
    number = torch.arange(per_row)[:, None] * segments + piece.segment + 1
    return {
        "tokens": torch.full(shape, pad) if piece.tokens is None else torch.where(valid, piece.tokens, pad),
        "targets": torch.zeros(shape, dtype=torch.int64) if piece.targets is None else piece.targets,
        "positions": (before + torch.arange(piece.columns)).expand(shape) * valid,
        "segments": number.expand(shape) * valid,
        "open": torch.full(shape, piece.open) & valid,
        "vector": torch.arange(per_row)[:, None].expand(shape) if piece.vector else torch.full(shape, -1),
    }


def _values(pieces: list[Piece], stream: str, rows: int, per_row: int) -> dict[str, Tensor]:
    """The adapter's streams: values, places and blanks of all pieces that have values."""
    mine = [piece for piece in pieces if piece.values is not None]
    shapes = [(rows, per_row, piece.columns) for piece in mine]
    place = [torch.arange(shape[2]).expand(shape) if piece.place is None else piece.place for piece, shape in zip(mine, shapes, strict=True)]
    found = {
        stream: torch.cat([piece.values for piece in mine if piece.values is not None], 2).flatten(1, 2),
        f"{stream}_place": torch.cat(place, 2).flatten(1, 2),
    }
    if any(piece.blank is not None for piece in mine):
        blank = [torch.zeros(shape, dtype=torch.bool) if piece.blank is None else piece.blank for piece, shape in zip(mine, shapes, strict=True)]
        found[f"{stream}_blank"] = torch.cat(blank, 2).flatten(1, 2)
    return found


def uniforms(seed: int, purpose: str, draw: Tensor, count: int) -> Tensor:
    """float32 [*draw.shape, count] from 0 to below 1, keyed by seed, purpose and each example's draw."""
    return torch.from_numpy(rng.uniforms(rng.key(seed, purpose), draw.numpy(), count))


def normals(seed: int, purpose: str, draw: Tensor, count: int) -> Tensor:
    """The same, of mean 0 and deviation 1."""
    return torch.from_numpy(rng.normals(rng.key(seed, purpose), draw.numpy(), count))


def shuffled(seed: int, purpose: str, draw: Tensor, count: int) -> Tensor:
    """int64 [*draw.shape, count]: a permutation of range(count) for each example."""
    return torch.from_numpy(np.argsort(uniforms(seed, purpose, draw, count).numpy(), -1, kind="stable"))


def pick(values: Tensor, order: Tensor) -> Tensor:
    """values [rows, per_row, n, size] at places order [rows, per_row, m]: [rows, per_row, m, size]."""
    return values.gather(2, order[..., None].expand(-1, -1, -1, values.shape[-1]))
