"""The token store: every document's tokens, memory-mapped, with an index by document."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bessemer.core import files
from bessemer.core.artifact import Artifact
from bessemer.core.errors import ArtifactError, DataError, neighbours
from bessemer.data.rows import Array
from bessemer.data.tokenizer import Tokenizer

META, BYTES, SHARDS = "tokens.json", "token_bytes.npy", "shards"
ENTRY = np.dtype([("tokens", "<u4"), ("bytes", "<u8"), ("domain", "<u4"), ("hash", "<u8")])
"""One document in a shard's index: its tokens with the one that ends it, its bytes in UTF-8, its domain, its hash."""
_OPEN = 256
"""Shards kept mapped at once: each takes a file handle."""

Split = Literal["train", "held_out"]
By = Literal["domain", "source"]


class Tokens(Artifact):
    """Tokenized documents (`shards/KEY.tokens`, uint16 or uint32) and what is known of each (`shards/KEY.npy`).

    Every document ends with the token `end`; where a model is to predict its first token, it reads `begin` before it.
    A document is held out when the hash of its text falls below a fraction, so it stays on its side whatever is added. Of a domain with
    two documents or more at least one is: the one of the least hash.

    Attributes:
        vocabulary: one more than the highest id.
        end, begin, pad: ids, as the tokenizer has them.
        fingerprint: that of the tokenizer which made it.
        sources, domains: names, in the order of their numbers.
        starts: int64 [documents], where each document's first token stands, counted over all shards.
        lengths: int64 [documents], tokens of each, the end included.
        bytes: int64 [documents], UTF-8 bytes of each document's text.
        source, domain: int32 [documents].
        held_out: bool [documents].
        facts: names of what `fact` can tell of each document.
    """

    kind = "tokens"

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        super().__init__(folder, manifest)
        self.meta = meta = files.read_json(self.folder / META)
        self.vocabulary, self.fingerprint = int(meta["vocabulary"]), str(meta["tokenizer"])
        self.end, self.begin, self.pad = int(meta["end"]), int(meta["begin"]), int(meta["pad"])
        self.dtype = np.dtype(meta["dtype"])
        self.sources: list[str] = meta["sources"]
        self.domains: list[str] = meta["domains"]
        self.facts: list[str] = ["domain", "source", *meta.get("facts", [])]
        self._read_index()
        self._shard = lru_cache(_OPEN)(self._map)

    def _read_index(self) -> None:
        shards = self.meta["shards"]
        entries = [self._entries(shard) for shard in shards]
        index = np.concatenate([np.zeros(0, dtype=ENTRY), *entries])
        numbers = [np.array([self.domains.index(name) for name in shard["domains"]], dtype=np.int32) for shard in shards]
        self.lengths = index["tokens"].astype(np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.bytes = index["bytes"].astype(np.int64)
        self.domain = np.concatenate([np.zeros(0, dtype=np.int32), *(n[e["domain"]] for n, e in zip(numbers, entries, strict=True))])
        self.source = np.repeat(np.array([self.sources.index(s["source"]) for s in shards], dtype=np.int32), [len(e) for e in entries])
        self.held_out = _held_out(index["hash"], self.domain, float(self.meta["held_out"]))
        self._bounds = np.cumsum([0] + [int(shard["tokens"]) for shard in shards])

    def _entries(self, shard: dict[str, Any]) -> Array:
        path = self.folder / SHARDS / f"{shard['key']}.npy"
        try:
            entries = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"is no index of a token shard: {error}", file=path) from None
        if entries.dtype != ENTRY or int(entries["tokens"].sum(dtype=np.int64)) != shard["tokens"]:
            raise ArtifactError(f"its documents don't add up to the {shard['tokens']} tokens tokens.json says", file=path)
        return entries

    def _map(self, number: int) -> Array:
        shard = self.meta["shards"][number]
        path = self.folder / SHARDS / f"{shard['key']}.tokens"
        try:
            content = np.asarray(np.memmap(path, dtype=self.dtype, mode="r"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"can't be mapped: {error}", file=path) from None
        if len(content) != shard["tokens"]:
            raise ArtifactError(f"holds {len(content)} tokens where tokens.json says {shard['tokens']}: it was truncated", file=path)
        return content

    @property
    def total(self) -> int:
        """Tokens in all, both splits."""
        return int(self._bounds[-1])

    def documents(self, split: Split, by: By = "domain", only: str | None = None) -> Array:
        """int64: the numbers of a split's documents, in order; those of one domain (or source) where it is named.

        Raises:
            DataError: there is no such domain or source.
        """
        if split not in get_args(Split):
            raise DataError(f"there is no split '{split}'", key="split", mend="it is 'train' or 'held_out'")
        chosen = self.held_out if split == "held_out" else ~self.held_out
        if only is not None:
            names = self.domains if by == "domain" else self.sources
            if only not in names:
                raise DataError(f"the tokens have no {by} '{only}'", file=self.folder, key=by, mend=neighbours(only, names))
            chosen = chosen & ((self.domain if by == "domain" else self.source) == names.index(only))
        return np.flatnonzero(chosen)

    def counts(self, split: Split) -> dict[str, dict[str, int]]:
        """domain -> documents, tokens and bytes."""
        found = {}
        for name in self.domains:
            chosen = self.documents(split, "domain", name)
            found[name] = {"documents": len(chosen), "tokens": int(self.lengths[chosen].sum()), "bytes": int(self.bytes[chosen].sum())}
        return found

    def fact(self, name: str) -> tuple[Array, list[str]]:
        """What is known of each document: int64 [documents], numbers of values, and the values.

        Raises:
            DataError: the store keeps no such fact, or a shard's file of them is torn.
        """
        if name in ("domain", "source"):
            return (self.domain, self.domains) if name == "domain" else (self.source, self.sources)
        if name not in self.facts:
            problem = f"the store keeps no '{name}' of its documents, but {', '.join(self.facts)}"
            raise DataError(problem, file=self.folder, key="facts", mend=f'tokenize with facts = ["{name}"]')
        values: dict[str, int] = {}
        numbers = [np.zeros(0, dtype=np.int64)]
        for shard in self.meta["shards"]:
            path = self.folder / SHARDS / f"{shard['key']}.facts.json"
            try:
                told = files.read_json(path)[name]
                here = [values.setdefault(value, len(values)) for value in told["values"]]
                numbers.append(np.array(here, dtype=np.int64)[np.array(told["numbers"], dtype=np.int64)])
            except (KeyError, TypeError, IndexError):
                raise ArtifactError(f"doesn't say '{name}' of its documents", file=path) from None
        found = np.concatenate(numbers)
        if len(found) != len(self.lengths):
            raise ArtifactError(f"says '{name}' of {len(found)} documents, and there are {len(self.lengths)}", file=self.folder)
        return found, list(values)

    def read(self, document: int) -> Array:
        """int64: one document's tokens, the end included."""
        return self.take(self.starts[document : document + 1], self.lengths[document : document + 1])

    def take(self, begin: Array, size: Array) -> Array:
        """int64 [sum(size)]: size[i] tokens from place begin[i] on, one stretch after the other; none crosses a shard."""
        number = np.searchsorted(self._bounds, begin, side="right") - 1
        out = np.empty(int(size.sum()), dtype=np.int64)
        ends = np.cumsum(size)
        # a slice for each stretch is faster than one index for all from some ten tokens on, and doesn't mind many shards
        for shard, first, count, end in zip(number.tolist(), (begin - self._bounds[number]).tolist(), size.tolist(), ends.tolist(), strict=True):
            out[end - count : end] = self._shard(shard)[first : first + count]
        return out

    def byte_lengths(self) -> Array:
        """int32 [vocabulary]: how many bytes each id stands for."""
        return np.load(self.folder / BYTES, allow_pickle=False)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuses a tokenizer other than the one these tokens were made with.

        Raises:
            DataError: it is another one.
        """
        if tokenizer.fingerprint != self.fingerprint:
            raise DataError(
                f"these tokens were made with tokenizer {self.fingerprint[:12]}, and {tokenizer.folder} is {tokenizer.fingerprint[:12]}",
                file=self.folder,
                mend="tokenize again with this tokenizer, or name the other one",
            )

    def check_vocabulary(self, size: int) -> None:
        """Refuses a model whose vocabulary is too small for these tokens.

        Raises:
            DataError: an id of these tokens has no place in it.
        """
        if size < self.vocabulary:
            raise DataError(
                f"these tokens have a vocabulary of {self.vocabulary}, and the model's has {size}",
                file=self.folder,
                key="vocabulary",
                mend="leave the model's vocabulary to 'auto', or tokenize with the model's tokenizer",
            )


def _held_out(hashes: Array, domain: Array, share: float) -> Array:
    """bool: the documents whose hash is in the first `share` of all there may be, and the least of a domain that would have none."""
    chosen = hashes < np.uint64(min(share * 2.0**64, 2.0**64 - 2048))
    for number in np.setdiff1d(domain, domain[chosen]) if share else ():
        own = hashes[domain == number]
        if own.min() < own.max():
            chosen |= (domain == number) & (hashes == own.min())
    return chosen
