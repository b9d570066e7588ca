"""The `sentencepiece` package as an engine: encodes and decodes with a `.model` file itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash

from bessemer.core import rng
from bessemer.core.errors import DataError
from bessemer.data.sentencepiece import SPACE, Model

_PROBES, _PIECES = 300, 12


class SentencePieceEngine:
    """What SentencePiece itself makes of a model.

    Raises:
        DataError: the package is not installed, or it refuses the file.
    """

    def __init__(self, file: Path) -> None:
        try:
            import sentencepiece
        except ImportError:
            mend = 'pip install "bessemer[hub]", or take the tokenizer.json that many models come with'
            raise DataError(
                "is a SentencePiece model, which the package sentencepiece must read; it is not installed", file=file, mend=mend
            ) from None
        try:
            data = file.read_bytes()
            self.processor: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (OSError, RuntimeError) as error:
            raise DataError(f"is no SentencePiece model: {error}", file=file) from None
        self.hash = xxhash.xxh3_128_hexdigest(data)

    def encode(self, text: str, special: Mapping[str, int] = {}) -> list[int]:
        """The ids of a text; the tokens of `special` that are written in it become their ids."""
        if not special:
            return self.processor.encode(text)
        found: list[int] = []
        longest_first = sorted(special, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            found += [special[part]] if part in special else self.processor.encode(part)
        return found

    def decode(self, ids: Iterable[int], special: Mapping[str, int] = {}) -> str:
        """The text of ids, those of `special` written out; ids the model doesn't have are left out."""
        names, size = {i: name for name, i in special.items()}, self.processor.get_piece_size()
        runs = groupby((i for i in map(int, ids) if 0 <= i < size), lambda i: names.get(i))
        return "".join(name * len(list(run)) if name is not None else self.processor.decode(list(run)) for name, run in runs)

    def agrees(self, backend: Any, texts: Iterable[str]) -> bool:
        """Whether a `tokenizers` tokenizer encodes these texts and decodes their ids as SentencePiece does."""
        backend.encode_special_tokens, unknown = True, self.processor.unk_id()
        for text in texts:
            ids = self.processor.encode(text)
            if backend.encode(text, add_special_tokens=False).ids != ids:
                return False
            if unknown not in ids and backend.decode(ids) != self.processor.decode(ids):  # it writes unknown pieces out
                return False
        return True


def probes(model: Model, texts: Sequence[str]) -> Iterator[str]:
    """Texts that show where two readings of a model differ: `texts`, its own pieces at random, its symbols between spaces."""
    yield from texts
    yield from ("  two  spaces  ", " \u2581 a \u2581\u2581", "a\r\nb\r\n", "\u2603\u2603 \U0001f9ff\u1234", "\x1f\ufb01\u0301")
    written = [text.replace(SPACE, " ") for text, _, _ in model.pieces]
    symbols = [text for text, _, kind in model.pieces if kind not in (1, 6)]
    draw = rng.numpy_generator(0, "sentencepiece probes")
    for number in range(_PROBES if written else 0):
        chosen = [written[i] for i in draw.integers(len(written), size=_PIECES)]
        if symbols:
            symbol = symbols[number % len(symbols)]
            chosen += [symbol, " " * (number % 3), symbol, *(chosen[:2] if number % 2 else [])]
            chosen = chosen if number % 4 < 2 else chosen[::-1]
        yield "".join(chosen)
