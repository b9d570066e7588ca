"""Documents with something told before their text: the same store, seen through a window that begins earlier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bessemer.data.rows import Array
from bessemer.data.tokens import Tokens


@dataclass(frozen=True)
class Prefixes:
    """What stands before each document of a store.

    Attributes:
        ids: the different prefixes, each an int64 array of tokens; some may be empty.
        which: int64 [documents], each document's prefix.
        learned: whether the prefix is a target as well, or only read.
        cooldown: the last fraction of training, in which no document has a prefix.
    """

    ids: list[Array]
    which: Array
    learned: bool = False
    cooldown: float = 0.0


class Prefixed:
    """A token store whose documents begin with their prefixes; it has what the loader reads of a store.

    Attributes:
        starts, lengths: int64 [documents], as in the store, the prefixes counted in.
    """

    def __init__(self, tokens: Tokens, prefixes: Prefixes) -> None:
        self.tokens, self.prefixes = tokens, prefixes
        self.begin, self.pad = tokens.begin, tokens.pad
        self.heads = np.array([len(ids) for ids in prefixes.ids], dtype=np.int64)[prefixes.which]
        self.lengths = tokens.lengths + self.heads
        self.starts = np.cumsum(self.lengths) - self.lengths

    def take(self, begin: Array, size: Array) -> Array:
        """int64 [sum(size)]: size[i] tokens from place begin[i] on, no stretch crossing a document."""
        document, first, told = self._split(begin, size)
        rest = size - told
        text = self.tokens.take(self.tokens.starts[document] + np.maximum(first - self.heads[document], 0), rest)
        out, at, taken = np.empty(int(size.sum()), dtype=np.int64), 0, 0
        for which, offset, head, tail in zip(self.prefixes.which[document].tolist(), first.tolist(), told.tolist(), rest.tolist(), strict=True):
            out[at : at + head] = self.prefixes.ids[which][offset : offset + head]
            out[at + head : at + head + tail] = text[taken : taken + tail]
            at, taken = at + head + tail, taken + tail
        return out

    def counted(self, begin: Array, size: Array) -> Array:
        """float32 [sum(size)]: 0 for the prefixes' tokens unless they are learned, 1 for the text's."""
        counts = np.ones(int(size.sum()), dtype=np.float32)
        if not self.prefixes.learned:
            _, _, told = self._split(begin, size)
            ends = np.cumsum(size)
            for start, head in zip((ends - size).tolist(), told.tolist(), strict=True):
                counts[start : start + head] = 0.0
        return counts

    def _split(self, begin: Array, size: Array) -> tuple[Array, Array, Array]:
        """Each stretch's document, where it begins in it, and how many of its tokens are of the prefix."""
        document = np.searchsorted(self.starts, begin, side="right") - 1
        first = begin - self.starts[document]
        return document, first, np.clip(self.heads[document] - first, 0, size)


def by_facts(tokens: Tokens, facts: list[str], encode: Callable[[Mapping[str, str]], Any]) -> tuple[list[Array], Array]:
    """The prefixes that follow from facts about documents, each different combination encoded once.

    Args:
        facts: what is told of each document: "domain", "source", and what else the store keeps (`tokenize.facts`).
        encode: the tokens for one combination.

    Returns:
        ids and which, as in `Prefixes`.

    Raises:
        DataError: the store keeps no such fact.
    """
    known = {name: tokens.fact(name) for name in facts}
    numbers = np.stack([np.zeros(len(tokens.lengths), dtype=np.int64), *(known[name][0].astype(np.int64) for name in facts)], axis=1)
    found, which = np.unique(numbers, axis=0, return_inverse=True)
    told = [{name: value for name, number in zip(facts, row[1:].tolist(), strict=True) if (value := known[name][1][number])} for row in found]
    return [np.array(encode(each), dtype=np.int64) for each in told], which.reshape(-1).astype(np.int64)
