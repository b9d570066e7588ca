"""Writing the token store: shards named by what is in them, so that stopping, adding and doing it all at once agree."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import xxhash

from bessemer.core import files
from bessemer.core.errors import DataError
from bessemer.core.registry import Auto
from bessemer.data import workers
from bessemer.data.corpus import Corpus
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import BYTES, ENTRY, META, SHARDS, Tokens


def write_store(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    *,
    held_out: float = 0.01,
    shard_megabytes: int = 8,
    reuse: str | Path | None = None,
    facts: Sequence[str] = (),
    engine: workers.Engine = "local",
    processes: int | Auto = "auto",
    on_done: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Tokenizes a corpus into `out`, in parallel; returns what a manifest wants to know.

    Work is cut by source, then into shards of about `shard_megabytes` of text. A shard's file name is the hash of its
    text and of the tokenizer, so one that is there already, in `out` or in `reuse`, is taken as it is.

    Args:
        held_out: the fraction of documents, by the hash of their text, that make the held-out split.
        reuse: an earlier store's folder; shards of the same text are copied from it.
        facts: keys of the documents' metadata to keep beside the tokens.
        on_done: called as each shard ends with (bytes of text, tokens) so far.

    Raises:
        DataError: the corpus is empty, or can't be read.
        ArtifactError: the store to reuse is no whole store.
    """
    if not corpus.count:
        raise DataError("the corpus has no documents", file=corpus.folder, mend="look at what the sources and cleaning stages dropped, and why")
    earlier = Tokens.open(reuse) if reuse is not None else None
    with files.disk_errors(out):
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
    units = [
        {
            "corpus": str(corpus.folder),
            "tokenizer": str(tokenizer.folder),
            "fingerprint": tokenizer.fingerprint,
            "out": str(out),
            "reuse": str(earlier.folder) if earlier else None,
            "source": source,
            "groups": groups,
            "facts": list(facts),
        }
        for source, groups in _cut(corpus, shard_megabytes << 20)
    ]
    so_far = [0, 0]

    def told(_: int, result: dict[str, Any]) -> None:
        so_far[0] += result["bytes"]
        so_far[1] += result["tokens"]
        if on_done:
            on_done(*so_far)

    with workers.Pool(engine, processes) as pool:
        made = pool.run(encode_shard, units, on_done=told)
    return _finish(out, tokenizer, made, held_out, list(facts))


def _cut(corpus: Corpus, most: int) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """(source, row groups) of each shard to make, the sources in the order of their first document."""
    held: dict[str, list[tuple[str, int]]] = {}
    sizes: dict[str, int] = {}
    done: dict[str, list[list[tuple[str, int]]]] = {}
    for shard in corpus.shards:
        for group, bytes_by_source in _row_groups(shard):
            for source, size in bytes_by_source.items():
                held.setdefault(source, []).append((shard.name, group))
                sizes[source] = sizes.get(source, 0) + size
                done.setdefault(source, [])
                if sizes[source] >= most:
                    done[source].append(held.pop(source))
                    sizes[source] = 0
    for source, whole in done.items():
        for groups in [*whole, *([held[source]] if source in held else [])]:
            yield source, groups


def _row_groups(shard: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """Each row group of a shard: about how many bytes of text each source has in it."""
    with _parquet(shard) as file:
        text = file.schema_arrow.names.index("text")
        for group in range(file.num_row_groups):
            source = file.read_row_group(group, columns=["source"]).column("source")
            size = file.metadata.row_group(group).column(text).total_uncompressed_size
            counts = pyarrow.compute.value_counts(source)
            yield group, {entry["values"].as_py(): size * entry["counts"].as_py() // len(source) for entry in counts}


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"can't be read as Parquet: {str(error).splitlines()[0]}", file=path, mend="make the corpus anew") from None


def encode_shard(
    *, corpus: str, tokenizer: str, fingerprint: str, out: str, reuse: str | None, source: str, groups: list[tuple[str, int]], facts: list[str]
) -> dict[str, Any]:
    """Tokenizes one shard, in whatever process: writes `KEY.tokens`, then `KEY.npy`; returns its entry of tokens.json."""
    texts, domains, told = _read(Path(corpus), source, groups, facts)
    names = list(dict.fromkeys(domains))
    key = _key(fingerprint, texts, domains, told)
    place = Path(out) / SHARDS
    size = sum(len(text) for text in texts)
    entry = {"key": key, "source": source, "domains": names, "documents": len(texts), "bytes": size}
    for folder in [place, *([Path(reuse) / SHARDS] if reuse else [])]:
        found = _whole(folder, key)
        if found is not None:
            if folder != place:
                for name in [f"{key}.tokens", *([f"{key}.facts.json"] if facts else []), f"{key}.npy"]:
                    _copy(folder / name, place / name)
            return entry | {"tokens": found, "taken": True}
    coder = _load(tokenizer, fingerprint)
    dtype = np.dtype(np.uint16 if coder.vocabulary_size <= 1 << 16 else np.uint32)
    ids, lengths = coder.encode_documents(texts)
    index = np.zeros(len(texts), dtype=ENTRY)
    index["tokens"], index["bytes"] = lengths, [len(text) for text in texts]
    index["domain"] = [names.index(domain) for domain in domains]
    index["hash"] = [xxhash.xxh3_64_intdigest(text) for text in texts]
    files.write(place / f"{key}.tokens", ids.astype(dtype).tobytes())
    if facts:
        files.write_json(place / f"{key}.facts.json", told)
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    files.write(place / f"{key}.npy", buffer.getvalue())
    return entry | {"tokens": len(ids), "taken": False}


def _read(corpus: Path, source: str, groups: list[tuple[str, int]], facts: list[str]) -> tuple[list[bytes], list[str], dict[str, Any]]:
    """The texts of some row groups that are of one source, their domains, and of each fact its values and each text's number among them."""
    texts: list[bytes] = []
    domains: list[str] = []
    told: dict[str, Any] = {name: {"values": {}, "numbers": []} for name in facts}
    for name, group in groups:
        with _parquet(corpus / "shards" / name) as file:
            table = file.read_row_group(group, columns=["text", "source", "domain", *(["metadata"] if facts else [])])
        table = table.filter(pyarrow.compute.equal(table.column("source"), source))
        texts += table.column("text").cast(pyarrow.binary()).to_pylist()
        domains += table.column("domain").to_pylist()
        for metadata in table.column("metadata").to_pylist() if facts else ():
            _tell(told, json.loads(metadata))
    return texts, domains, {name: {"values": list(known["values"]), "numbers": known["numbers"]} for name, known in told.items()}


def _tell(told: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Adds one document's facts; what it doesn't say is the empty value, and of an address only the host is kept."""
    for name, known in told.items():
        value = "" if metadata.get(name) is None else str(metadata[name])
        if "://" in value:
            value = urlsplit(value).netloc or value
        known["numbers"].append(known["values"].setdefault(value, len(known["values"])))


def _key(fingerprint: str, texts: list[bytes], domains: list[str], told: dict[str, Any]) -> str:
    digest = xxhash.xxh3_128(fingerprint.encode())
    for text, domain in zip(texts, domains, strict=True):
        digest.update(f"{len(text)} {len(domain)} {domain} ".encode())
        digest.update(text)
    if told:
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()


def _whole(folder: Path, key: str) -> int | None:
    """The tokens of a shard that is there whole; None if it is not."""
    try:
        index = np.load(folder / f"{key}.npy", allow_pickle=False)
        size = (folder / f"{key}.tokens").stat().st_size
    except (OSError, ValueError):
        return None
    if index.dtype != ENTRY:
        return None
    count = int(index["tokens"].sum(dtype=np.int64))
    return count if count and size in (2 * count, 4 * count) else None


def _copy(source: Path, place: Path) -> None:
    with files.disk_errors(place):
        half = place.with_name(f".{place.name}.copying")
        shutil.copyfile(source, half)
        half.replace(place)


@lru_cache(1)
def _load(folder: str, fingerprint: str) -> Tokenizer:
    found = Tokenizer.load(folder)
    if found.fingerprint != fingerprint:
        raise DataError("the tokenizer changed while it was being used", file=folder)
    return found


def _finish(out: Path, tokenizer: Tokenizer, made: list[dict[str, Any]], held_out: float, facts: list[str]) -> dict[str, Any]:
    """Writes what binds the shards together and removes what no shard of this store is."""
    kept = {f"{entry['key']}{ending}" for entry in made for ending in (".tokens", ".npy", *([".facts.json"] if facts else []))}
    for path in (out / SHARDS).iterdir():
        if path.name not in kept:
            path.unlink()
    buffer = io.BytesIO()
    np.save(buffer, tokenizer.byte_lengths(), allow_pickle=False)
    files.write(out / BYTES, buffer.getvalue())
    shown = ("key", "source", "domains", "documents", "tokens")
    meta = {
        "vocabulary": tokenizer.vocabulary_size,
        "dtype": "<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4",
        "end": tokenizer.end,
        "begin": tokenizer.begin,
        "pad": tokenizer.pad,
        "tokenizer": tokenizer.fingerprint,
        "held_out": held_out,
        "sources": list(dict.fromkeys(entry["source"] for entry in made)),
        "domains": sorted({name for entry in made for name in entry["domains"]}),
        "facts": facts,
        "shards": [{name: entry[name] for name in shown} for entry in made],
    }
    files.write_json(out / META, meta)
    text, tokens = (sum(entry[name] for entry in made) for name in ("bytes", "tokens"))
    return {
        "documents": sum(entry["documents"] for entry in made),
        "bytes": text,
        "tokens": tokens,
        "bytes_per_token": round(text / tokens, 4),
        "vocabulary": tokenizer.vocabulary_size,
        "shards": len(made),
        "shards_taken_over": sum(entry["taken"] for entry in made),
    }
