"""Byte-level BPE through tiktoken: the same merges as a `tokenizer.json`, several times as fast."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bessemer.data.byte_level import to_bytes

Array = np.ndarray[Any, Any]
GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_LOOKAHEAD, _NEWLINES = r"|\s+(?!\S)|\s+", r"|\s*[\r\n]+"
_CUT, _STOP = b"\x01", b"\x02"
"""Bytes put between pieces and after texts before tiktoken sees them; texts that hold them go without the cuts."""
_WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000](?:(?=\\s)|(?<=\\s.))", re.DOTALL)
"""White space of several bytes beside other white space: such runs are not marked."""
_AT_ONCE = 1 << 20
"""Bytes of text given to tiktoken in one call."""


class FastBPE:
    """Encodes with tiktoken what a byte-level BPE `tokenizer.json` describes.

    Ids need not follow the order of the merges: tiktoken works on ranks, and a table turns ranks into ids.

    The usual patterns end in `\\s+(?!\\S)|\\s+`: of white space before a word, all but the last character is a piece. That
    look-ahead keeps the regular expressions off their fast engine. So where such a run is, a mark is put before its last
    character, the look-ahead is dropped from the pattern, and the pieces are the same: no alternative of these patterns
    but the dropped one reaches into a run and ends there (`\\s*[\\r\\n]+` ends at a line break, and no mark stands by one).
    """

    def __init__(self, ranks: dict[bytes, int], ids: Array, pattern: str) -> None:
        import tiktoken

        self.marks = pattern.endswith(_LOOKAHEAD)
        breaks = "\r\n" if _NEWLINES in pattern else ""
        spaces = "\t\n\v\f\r "
        self._classes = bytes((chr(i) in spaces and chr(i) not in breaks) + 2 * (chr(i) not in spaces + _STOP.decode()) for i in range(256))
        specials = {_CUT.decode(): len(ranks), _STOP.decode(): len(ranks) + 1}
        self._ids = np.concatenate([ids, [-1, -2]]).astype(np.int32)
        self._whole = tiktoken.Encoding("whole", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        cut_pattern = pattern[: -len(_LOOKAHEAD)] + r"|\s+" if self.marks else pattern
        self._joined = tiktoken.Encoding("joined", pat_str=cut_pattern, mergeable_ranks=ranks, special_tokens=specials)
        self._specials = set(specials)

    @classmethod
    def of(cls, definition: dict[str, Any]) -> FastBPE | None:
        """The fast path for a parsed `tokenizer.json`; None where it does something tiktoken can't."""
        pattern = split_pattern(definition)
        model = definition["model"]
        plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
        if (
            pattern is None
            or not plain
            or definition.get("normalizer")
            or any(not entry["special"] for entry in definition.get("added_tokens") or [])
        ):
            return None
        table = ranks_of(model)
        try:
            return cls(table[0], table[1], pattern) if table else None
        except ValueError:  # a pattern tiktoken's engine can't read
            return None

    def encode(self, text: str) -> Array:
        """The ids of a text, int64; special tokens written in it are text like any other.

        Raises:
            ValueError: its regular expression engine ran out of stack.
        """
        return self.encode_documents([text.encode()], -2)[0][:-1]

    def encode_documents(self, texts: Sequence[bytes], end: int) -> tuple[Array, Array]:
        """The ids of texts (UTF-8) one after the other, `end` after each, and how many each has with it: both int64.

        Raises:
            ValueError: its regular expression engine ran out of stack.
        """
        parts = [self._encode(chunk) for chunk in _chunks(texts)]
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *parts], dtype=np.int64)
        stops = np.flatnonzero(ids == -2)
        ids[stops] = end
        return ids, np.diff(stops, prepend=-1)

    def _encode(self, texts: Sequence[bytes]) -> Array:
        """Ids with -2 after each text, int32."""
        joined = _STOP.join([*texts, b""])
        odd_space = self.marks and any(not text.isascii() and _WIDE_SPACE.search(text.decode()) for text in texts)
        if odd_space or _CUT in joined or joined.count(_STOP) != len(texts):
            if len(texts) > 1:  # find the ones it is about
                half = len(texts) // 2
                return np.concatenate([self._encode(texts[:half]), self._encode(texts[half:])])
            buffer = self._whole._core_bpe.encode_to_tiktoken_buffer(texts[0].decode(), set())
            return np.append(self._ids.take(np.frombuffer(buffer, dtype=np.uint32)), self._ids[-1:])
        text = self._marked(joined) if self.marks else joined.decode()
        ranks = np.frombuffer(self._joined._core_bpe.encode_to_tiktoken_buffer(text, self._specials), dtype=np.uint32)
        return self._ids.take(ranks[ranks != len(self._ids) - 2] if self.marks else ranks)

    def _marked(self, joined: bytes) -> str:
        """The text with a mark before the last character of each run of white space that a word follows."""
        codes = np.frombuffer(joined, dtype=np.uint8)
        found = np.frombuffer(joined.translate(self._classes), dtype=np.uint8)
        at = np.flatnonzero((found[:-2] & found[1:-1] & (found[2:] >> 1)).view(np.bool_)) + 1
        return np.insert(codes, at, _CUT[0]).tobytes().decode()

    def agrees(self, reference: Any, texts: Sequence[str]) -> bool:
        """Whether it encodes these texts as the `tokenizers` tokenizer does."""
        expected = reference.encode_batch(list(texts), add_special_tokens=False)
        try:
            return all(self.encode(text).tolist() == each.ids for text, each in zip(texts, expected, strict=True))
        except ValueError:
            return False


def _chunks(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= _AT_ONCE:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


def split_pattern(definition: dict[str, Any]) -> str | None:
    """The regular expression a byte-level tokenizer cuts text with; None if it cuts in another way."""
    before = definition.get("pre_tokenizer") or {}
    if definition["model"].get("type") != "BPE":
        return None
    if before.get("type") == "ByteLevel":
        return GPT2_SPLIT if before.get("use_regex", True) and not before.get("add_prefix_space") else None
    steps = before.get("pretokenizers") or []
    if before.get("type") != "Sequence" or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, level = steps
    if split["behavior"] != "Isolated" or split.get("invert") or level.get("use_regex", True) or level.get("add_prefix_space"):
        return None
    return split["pattern"].get("Regex")


def ranks_of(model: dict[str, Any]) -> tuple[dict[bytes, int], np.ndarray[Any, Any]] | None:
    """bytes -> rank in the order of the merges, and rank -> id; None where a byte has no token of its own."""
    vocabulary: dict[str, int] = model["vocab"]
    ranks: dict[bytes, int] = {}
    ids: list[int] = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        content = to_bytes(token)
        if content is not None and len(content) == 1:
            ranks[content] = len(ids)
            ids.append(vocabulary[token])
    if len(ranks) != 256:
        return None
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        content = to_bytes(left + right)
        if content is None or left + right not in vocabulary:
            return None
        if content not in ranks:
            ranks[content] = len(ids)
            ids.append(vocabulary[left + right])
    return ranks, np.array(ids, dtype=np.int64)


def definition_of(tokenizer: Any) -> dict[str, Any]:
    """The parsed `tokenizer.json` of a `tokenizers` tokenizer."""
    return json.loads(tokenizer.to_str())
