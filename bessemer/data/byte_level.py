"""The printable characters byte-level tokenizers write bytes as (Radford et al. 2019), and the bytes any token stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def characters() -> tuple[str, ...]:
    """The character each byte is written as: itself where it is printable, otherwise one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(spare)) for byte in range(256))


@cache
def _bytes_by_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(characters())}


def to_bytes(token: str) -> bytes | None:
    """The bytes a byte-level token is written for; None if it holds a character that stands for no byte."""
    table = _bytes_by_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return None


def to_token(content: bytes) -> str:
    """How a byte-level vocabulary writes these bytes."""
    table = characters()
    return "".join(table[byte] for byte in content)


def token_bytes(definition: dict[str, Any]) -> list[bytes]:
    """What each id of a `tokenizer.json` stands for; special tokens stand for no bytes.

    Args:
        definition: the parsed file.
    """
    model = definition["model"]
    vocabulary = model["vocab"]
    pairs = [(entry[0], i) for i, entry in enumerate(vocabulary)] if isinstance(vocabulary, list) else list(vocabulary.items())
    added = {entry["id"]: entry for entry in definition.get("added_tokens") or []}
    out = [b""] * (1 + max([i for _, i in pairs] + list(added), default=-1))
    spell = _speller(json.dumps(definition.get("decoder") or {}, ensure_ascii=False), model)
    for token, i in pairs:
        out[i] = spell(token)
    for i, entry in added.items():
        out[i] = b"" if entry["special"] else entry["content"].encode()
    return out


def _speller(decoder: str, model: dict[str, Any]) -> Callable[[str], bytes]:
    """How this kind of vocabulary writes bytes, told by the decoder that undoes it."""
    if '"ByteLevel"' in decoder:
        return lambda token: found if (found := to_bytes(token)) is not None else token.encode()
    if "\u2581" in decoder:

        def spell(token: str) -> bytes:
            match = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()

        return spell
    if '"WordPiece"' in decoder or model.get("continuing_subword_prefix"):
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda token: token[len(prefix) :].encode() if token.startswith(prefix) else f" {token}".encode()
    return lambda token: token.encode()
