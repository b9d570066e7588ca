"""How fast text becomes ids, and a vocabulary is learnt: ours against tiktoken and tokenizers over the same merges.

Beside the wall's rates stand those per second of processor time, workers included, which a busy machine bends less.

python benchmarks/tokenizer.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results import finish

from bessemer.core.artifact import seal
from bessemer.core.work import Work
from bessemer.data.corpus import Corpus, write_corpus
from bessemer.data.document import Document
from bessemer.data.fast_bpe import GPT2_SPLIT, ranks_of
from bessemer.data.tokenizer import Tokenizer
from bessemer.run.stages.tokenize import tokenize
from bessemer.run.stages.train_tokenizer import train_tokenizer

TARGET = 20.0  # MB/s on two cores
LEARNT = 32.0  # MB the vocabulary is learnt from


def texts(megabytes: float) -> list[str]:
    """The standard library's and installed packages' Python files, about so many MB of them."""
    found, size = [], 0
    roots = [Path(os.__file__).parent, *(Path(entry) for entry in sys.path if entry.endswith("site-packages"))]
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found.append(text)
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return found


def train_ours(corpus: Corpus, folder: Path, megabytes: float) -> Tokenizer:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train_tokenizer(Work(folder), corpus, megabytes=megabytes)
    return Tokenizer.load(folder)


def whole(corpus: Corpus, tokenizer: Tokenizer, folder: Path, processes: int) -> None:
    """The stage: reading the corpus, encoding, writing and syncing the store, worker start included."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    work = Work(folder)
    tokenize(work, corpus, tokenizer, processes=processes)
    seal(folder, "tokens", recipe={}, parents={}, info={})


def contenders(corpus: Corpus, tokenizer: Tokenizer, documents: list[str], folder: Path) -> dict[str, Callable[[], Any]]:
    import tiktoken

    table = ranks_of(tokenizer.definition["model"])
    assert table is not None
    peer = tiktoken.Encoding("peer", pat_str=GPT2_SPLIT, mergeable_ranks=table[0], special_tokens={})
    raw = [text.encode() for text in documents]
    half = [raw[::2], raw[1::2]]

    def two_threads() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(tokenizer.encode_documents, half))

    return {
        "ours, one thread": lambda: tokenizer.encode_documents(raw),
        "tiktoken, one thread": lambda: [peer.encode_ordinary(text) for text in documents],
        "ours, two threads": two_threads,
        "tiktoken, two threads": lambda: peer.encode_ordinary_batch(documents, num_threads=2),
        "tokenizers, all cores": lambda: tokenizer.backend.encode_batch_fast(documents, add_special_tokens=False),
        "ours, whole stage, two processes": lambda: whole(corpus, tokenizer, folder / "tokens", 2),
    }


def measured(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the wall, and of processor time, that of ended child processes included."""
    began, busy = time.perf_counter(), processor()
    call()
    return time.perf_counter() - began, processor() - busy


def processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    folder = Path(tempfile.mkdtemp(prefix="bessemer-bench-"))
    try:
        documents = texts(8 if quick else 96)
        size = sum(len(text.encode()) for text in documents) / 1e6
        corpus = write_corpus(folder / "corpus", (Document(text, "python", "code", str(i)) for i, text in enumerate(documents)))
        times = {"training": [measured(lambda: train_ours(corpus, folder / "tokenizer", LEARNT))]}
        calls = contenders(corpus, Tokenizer.load(folder / "tokenizer"), documents, folder)
        for _ in range(2 if quick else 3):  # interleaved, so that a busy minute hurts all alike
            for name, call in calls.items():
                times.setdefault(name, []).append(measured(call))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = dict.fromkeys(times, size) | {"training": min(size, LEARNT)}
    wall, busy = ({name: sizes[name] / statistics.median(pair[which] for pair in each) for name, each in times.items()} for which in (0, 1))
    report(wall, busy, size, quick)


def report(wall: dict[str, float], busy: dict[str, float], size: float, quick: bool) -> None:
    print(f"{size:.1f} MB of Python, vocabulary 8192, load {os.getloadavg()[0]:.1f}: MB/s by the wall, MB per second of processor time")
    for name, figure in wall.items():
        print(f"  {name:36s} {figure:8.1f} {busy[name]:8.1f}")
    told = {name: round(figure, 2) for name, figure in wall.items()}
    told |= {f"{name}, per second of processor": round(figure, 2) for name, figure in busy.items()}
    told["times tiktoken, one thread"] = round(busy["ours, one thread"] / busy["tiktoken, one thread"], 2)
    finish("tokenizer", told, {"whole stage, MB/s on two cores": TARGET}, wall["ours, whole stage, two processes"] >= TARGET, quick)


if __name__ == "__main__":
    main()
