"""SentencePiece models (Kudo and Richardson 2018) made into `tokenizers` tokenizers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bessemer.core.errors import DataError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
SPACE = "\u2581"


@dataclass
class Model:
    """What a `.model` file says, as far as `tokenizers` can follow it. Pieces are (text, score, kind)."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    characters: bytes = b""
    dummy_prefix: bool = True
    squeeze_spaces: bool = True


def read(file: Path) -> tuple[Any, Model]:
    """The `tokenizers` tokenizer that encodes as SentencePiece does with this model, as far as it can, and the model.

    Raises:
        DataError: the file is no SentencePiece model, or is truncated.
    """
    try:
        model = parse(file.read_bytes())
    except (OSError, ValueError, IndexError, struct.error, AttributeError, TypeError) as error:
        raise DataError(f"is no SentencePiece model, or was truncated ({error})", file=file) from None
    if not model.pieces:
        raise DataError("holds no pieces, so it is no SentencePiece model", file=file)
    return convert(model, file), model


def parse(data: bytes) -> Model:
    """Reads the protobuf message ModelProto of sentencepiece_model.proto."""
    model = Model()
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            model.pieces.append((piece.get(1, b"").decode(), score, piece.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
            model.kind, model.byte_fallback = trainer.get(3, _UNIGRAM), bool(trainer.get(35, 0))
        elif number == 3:
            rules = dict(_fields(value))
            model.characters = rules.get(2, b"")
            model.dummy_prefix, model.squeeze_spaces = (bool(rules.get(i, 1)) for i in (3, 4))
    return model


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: whole numbers as int, everything else as bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place + size > len(data):
            raise ValueError(f"ends at byte {len(data)}, inside a field")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(f"no number ends at byte {place}")


def convert(model: Model, file: Path) -> Any:
    """The same tokenizer in the terms of the `tokenizers` library.

    Known to differ: spaces next to a user-defined piece, where the model adds or squeezes spaces; characters that are
    mapped together with others; control pieces spelt with unknown characters; unused pieces; word and character models.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models

    unknown = next((i for i, piece in enumerate(model.pieces) if piece[2] == _UNKNOWN), None)
    if model.kind != _BPE:
        # pieces that only stand for themselves must not be found in text: they get a score no path would take
        lowest = min(score for _, score, _ in model.pieces) - 1e4
        scored = [(text, score if kind in (_NORMAL, _UNKNOWN, _BYTE) else lowest) for text, score, kind in model.pieces]
        core: Any = models.Unigram(scored, unknown, model.byte_fallback)
    else:
        vocabulary = {text: i for i, (text, _, _) in enumerate(model.pieces)}
        if len(vocabulary) != len(model.pieces):
            raise DataError("holds the same piece twice", file=file)
        unk = model.pieces[unknown][0] if unknown is not None else None
        core = models.BPE(vocabulary, merges_of(model), unk_token=unk, fuse_unk=True, byte_fallback=model.byte_fallback)
    made = tokenizers.Tokenizer(core)
    made.normalizer = _normalizer(model)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    made.decoder = decoders.Sequence(steps)
    for text, _, kind in model.pieces:
        if kind in (_CONTROL, _UNKNOWN):
            made.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == _USER:
            made.add_tokens([AddedToken(text, normalized=False, special=False)])
    return made


def merges_of(model: Model) -> list[tuple[str, str]]:
    """The merges a BPE model's pieces come from: every way to make a piece of two others, the best-scored piece first."""
    score = {text: (value, i) for i, (text, value, kind) in enumerate(model.pieces) if kind == _NORMAL}
    found = []
    for text, (value, i) in score.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in score and right in score:
                found.append((-value, i, score[left][1], score[right][1], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(model: Model) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if model.characters:
        table = normalizers.Precompiled(model.characters)
        # it takes the two characters of a line's end for one and maps the first alone; SentencePiece maps both
        ending = "".join(table.normalize_str(character) for character in "\r\n")
        steps += [normalizers.Replace("\r\n", ending), table]
    if model.squeeze_spaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)
