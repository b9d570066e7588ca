"""Reading tokenizers others made: `tokenizer.json`, SentencePiece models, tiktoken ranks; all become one form."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bessemer.core.errors import DataError
from bessemer.data import sentencepiece
from bessemer.data.byte_level import to_token
from bessemer.data.sentencepiece_engine import SentencePieceEngine, probes
from bessemer.data.tokenizer import AWKWARD, CONFIG, END, FILE, guess_notes, read_definition
from bessemer.data.tokenizer_train import SPLITS


def read_tokenizer(
    path: str | Path, *, split: str = "llama3", specials: Sequence[str] = (END,), end: str | None = None, pad: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """A `tokenizers` tokenizer and its notes, from whatever file it is in.

    SentencePiece models are checked against SentencePiece itself; where `tokenizers` can't do the same, the notes name
    the model, and it is encoded with as it is.

    Args:
        path: a `tokenizer.json`, a SentencePiece `.model`, a tiktoken `.tiktoken`, or a folder that holds one of them.
        split: for tiktoken ranks, which don't tell it: "gpt2", "llama3" or a regular expression.
        specials: for tiktoken ranks: special tokens, which get the ids after the last rank.
        end, pad: the tokens that end a document and fill a row, where the usual names don't tell.

    Raises:
        DataError: there is no such file, it isn't what its name says, or no token ends documents; or the package
            sentencepiece is wanted and not installed.
    """
    file = _find(Path(path))
    extra: dict[str, Any] = {}
    if file.suffix == ".tiktoken":
        backend = from_ranks(file, split=split, specials=specials)
    elif file.suffix == ".model":
        backend, model = sentencepiece.read(file)
        engine = SentencePieceEngine(file)
        if model.characters or not engine.agrees(backend, probes(model, AWKWARD)):  # it maps graphemes, not the longest match
            extra["sentencepiece"] = str(file)
    else:
        backend = read_definition(file)
    return backend, guess_notes(backend, file.parent if (file.parent / CONFIG).is_file() else None, end=end, pad=pad) | extra


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (FILE, "tokenizer.model", "*.tiktoken", "*.model"):
        found = sorted(path.glob(name)) if path.is_dir() else []
        if found:
            return found[0]
    problem = "holds no tokenizer.json, .model or .tiktoken file" if path.is_dir() else "there is no such file"
    raise DataError(problem, file=path, key="path")


def from_ranks(file: Path, *, split: str = "llama3", specials: Sequence[str] = (END,)) -> Any:
    """The `tokenizers` tokenizer that encodes as tiktoken does with the ranks in a file.

    Raises:
        DataError: a line is not `base64 rank`, a byte has no rank, ranks repeat, or a token isn't made of two others.
    """
    ranks = _read_ranks(file)
    pattern = SPLITS.get(split, split)
    merges = [pair for token, rank in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1 and (pair := _merge_of(token, rank, ranks))]
    first = max(ranks.values()) + 1
    added = [
        {"id": first + i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i, token in enumerate(specials)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "ignore_merges": True, "vocab": {to_token(token): rank for token, rank in ranks.items()}}
    model["merges"] = [[to_token(left), to_token(right)] for left, right in merges]
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, level],
        },
        "decoder": level,
        "model": model,
    }
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"can't be made into a tokenizer: {error}", file=file) from None


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(f"line {number} is not a token in base64 and its rank", file=file, key=f"line {number}") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"has no rank for {len(missing)} of the 256 bytes, 0x{missing[0]:02x} for one: it was truncated or is no rank file", file=file
        )
    if len(set(ranks.values())) != len(ranks):
        raise DataError("gives the same rank twice", file=file)
    return ranks


def _merge_of(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge makes this one: what is left when only earlier merges are applied to its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks.get(left + right, rank), i) for i, (left, right) in enumerate(pairwise(parts))]
        best, place = min(candidates)
        if best >= rank:
            return None  # reached only as a whole piece
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]
