"""How fast documents are packed and rows become batches, on one core.

Rates are by processor time, which is the wall's on a quiet machine; the wall's are given beside them.

python benchmarks/loader.py [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from results import finish
from tokenizer import texts

from bessemer.core.artifact import seal
from bessemer.core.work import Work
from bessemer.data.corpus import write_corpus
from bessemer.data.document import Document
from bessemer.data.loader import Loader
from bessemer.data.pack.best_fit import best_fit
from bessemer.data.pack.concat import concat
from bessemer.data.tokens import Tokens
from bessemer.run.stages.tokenize import tokenize
from bessemer.run.stages.train_tokenizer import train_tokenizer

TARGETS = {"loader tokens/s": 5e6, "best_fit documents/s": 5e5}


def store(folder: Path, megabytes: float) -> Tokens:
    from bessemer.data.tokenizer import Tokenizer

    corpus = write_corpus(folder / "corpus", (Document(text, "python", ("code", "prose")[i % 2], str(i)) for i, text in enumerate(texts(megabytes))))
    for name in ("tokenizer", "tokens"):
        (folder / name).mkdir()
    train_tokenizer(Work(folder / "tokenizer"), corpus, megabytes=4.0)
    tokenize(Work(folder / "tokens"), corpus, Tokenizer.load(folder / "tokenizer"), shard_megabytes=4)
    seal(folder / "tokens", "tokens", recipe={}, parents={}, info={})
    return Tokens.open(folder / "tokens")


def tokens_per_second(loader: Loader, rows: int, seconds: float) -> tuple[float, float]:
    """The medians over rounds: by processor time, and by the wall."""
    rates: list[tuple[float, float]] = []
    start, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        wall, busy = time.perf_counter(), time.process_time()
        for _ in range(64):
            loader.batch(start, rows)
            start += rows
        tokens = 64 * rows * loader.length
        rates.append((tokens / (time.process_time() - busy), tokens / (time.perf_counter() - wall)))
    return statistics.median(rate[0] for rate in rates), statistics.median(rate[1] for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="bessemer-bench-"))
    figures: dict[str, float] = {}
    try:
        tokens = store(folder, 8 if quick else 48)
        for name, length, rows in (("tiny, 256 x 16", 256, 16), ("small, 512 x 8", 512, 8), ("2048 x 32", 2048, 32)):
            for pack in ("best_fit", "concat"):
                rates = tokens_per_second(Loader(tokens, length=length, pack=pack), rows, 1.0 if quick else 4.0)
                figures[f"{pack}, {name}, tokens/s"], figures[f"{pack}, {name}, tokens/s by the wall"] = rates
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lengths = np.random.default_rng(0).geometric(1 / 400, 200_000 if quick else 2_000_000)
    for packing in (best_fit, concat):
        began = time.process_time()
        rows_made = packing(lengths, 2048)
        figures[f"{packing.__name__}, documents/s"] = len(lengths) / (time.process_time() - began)
        figures[f"{packing.__name__}, padding"] = rows_made.padding
    report(figures, quick)


def report(figures: dict[str, float], quick: bool) -> None:
    for name, figure in figures.items():
        print(f"  {name:44s} {figure:16,.5g}")
    fed = min(figure for name, figure in figures.items() if name.endswith("tokens/s"))
    holds = fed >= TARGETS["loader tokens/s"] and figures["best_fit, documents/s"] >= TARGETS["best_fit documents/s"]
    finish("loader", {name: float(f"{figure:.5g}") for name, figure in figures.items()}, TARGETS, holds, quick)


if __name__ == "__main__":
    main()
