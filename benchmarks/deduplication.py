"""Near-duplicate removal, whole: reading, shingling, hashing, clustering and writing, against datatrove's four stages.

Both read Parquet and write Parquet, on two processes, with 14 bands of 8 permutations over word 5-grams. Documents have
1.3 kB; into a share of them copies are planted with words replaced at several rates. Recall is the share of planted
copies of which exactly one of the two stays, precision the share of removed documents that were planted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyarrow
import pyarrow.parquet
from peers import peer_python
from results import finish

from bessemer.core.work import Work
from bessemer.data.corpus import Corpus, write_corpus
from bessemer.data.document import Document
from bessemer.run.stages.deduplicate import deduplicate

RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
MEASURED = 536
"""datatrove's documents a second as the project's brief measured them on this kind of machine."""
PEER = r"""
import sys, time, json, os, shutil
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages

def main(folder, out):
    config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8)
    reader = lambda: ParquetReader(folder, text_key="text", id_key="id")
    steps = [
        dict(pipeline=[reader(), MinhashDedupSignature(output_folder=out + "/s", config=config, language=Languages.english)], tasks=2),
        dict(pipeline=[MinhashDedupBuckets(input_folder=out + "/s", output_folder=out + "/b", config=config)], tasks=14),
        dict(pipeline=[MinhashDedupCluster(input_folder=out + "/b", output_folder=out + "/r", config=config)], tasks=1),
        dict(pipeline=[reader(), MinhashDedupFilter(input_folder=out + "/r"), ParquetWriter(out + "/kept")], tasks=2),
    ]
    seconds = []
    for number, step in enumerate(steps):
        start = time.perf_counter()
        LocalPipelineExecutor(workers=2, logging_dir=f"{out}/log{number}", **step).run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def documents(count: int, seed: int) -> list[Document]:
    """`count` documents of which 30 in a hundred are copies of others, their ids "n" and "n copy RATE"."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("etaoinshrdlucmfwypvbgkqjxz", range(26, 0, -1), k=draw.randint(2, 10))) for _ in range(30_000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    cumulative = [0.0]
    for weight in weights:
        cumulative.append(cumulative[-1] + weight)
    made, number = [], 0
    while len(made) < count:
        words = draw.choices(vocabulary, cum_weights=cumulative[1:], k=195)
        made.append(Document(" ".join(words), "bench", "prose", str(number)))
        if number % 7 < 3:
            rate = RATES[number % len(RATES)]
            copy = [draw.choice(vocabulary) if draw.random() < rate else word for word in words]
            made.append(Document(" ".join(copy), "bench", "prose", f"{number} copy {rate}"))
        number += 1
    draw.shuffle(made)
    return made


def score(ids: list[str], kept: list[str]) -> dict[str, Any]:
    """Recall by edit rate and precision, from which ids stayed."""
    stayed, gone = set(kept), set(ids) - set(kept)
    copies = {name: name.split(" copy ") for name in ids if " copy " in name}
    found: dict[float, list[bool]] = {rate: [] for rate in RATES}
    planted = set()
    for name, (base, rate) in copies.items():
        if base in stayed or base in gone:
            found[float(rate)].append((name in stayed) != (base in stayed))
            planted |= {name, base}
    recall = {str(rate): sum(hits) / max(1, len(hits)) for rate, hits in found.items()}
    return {"recall": recall, "all": statistics.mean(recall.values()), "precision": len(gone & planted) / max(1, len(gone))}


def ours(corpus: Corpus, out: Path) -> tuple[float, list[str]]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = time.perf_counter()
    deduplicate(Work(out), corpus, methods=["minhash"], processes=2)
    seconds = time.perf_counter() - start
    return seconds, pyarrow.parquet.read_table(out / "shards", columns=["id"])["id"].to_pylist()


def theirs(python: str, folder: Path, out: Path) -> tuple[float, list[str]]:
    shutil.rmtree(out, ignore_errors=True)
    script = out.with_suffix(".py")
    script.write_text(PEER)
    environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, str(script), str(folder), str(out)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"datatrove failed:\n{done.stderr[-3000:]}")
    seconds = sum(json.loads(done.stdout.strip().splitlines()[-1]))
    return seconds, pyarrow.parquet.read_table(out / "kept", columns=["id"])["id"].to_pylist()


def measure(place: Path, many: int, few: int, rounds: int) -> dict[str, Any]:
    python = peer_python("datatrove", ["datatrove[io,processing]", "spacy"])
    large = documents(many, 1)
    small = documents(few, 2)
    big = write_corpus(place / "large", large, shard_bytes=4 << 20)
    little = write_corpus(place / "small", small, shard_bytes=few * 1300 // 2 + 1)
    ids = [document.id for document in small]
    speeds: dict[str, list[float]] = {"ours": [], "datatrove": []}
    for _ in range(rounds):
        seconds, _ = ours(big, place / "out")
        speeds["ours"].append(many / seconds)
        seconds, peer_kept = theirs(python, little.folder / "shards", place / "peer")
        speeds["datatrove"].append(few / seconds)
    _, kept = ours(little, place / "out")
    own, peer = score(ids, kept), score(ids, peer_kept)
    medians = {name: statistics.median(rates) for name, rates in speeds.items()}
    size = sum(len(document.text) for document in large) / many
    return {
        "documents_per_second": medians,
        "runs": speeds,
        "ratio": medians["ours"] / medians["datatrove"],
        "ours": own,
        "datatrove": peer,
        "bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 documents for us, 1,000 for datatrove, one round")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = measure(Path(place), *((20_000, 1_000, 1) if chosen.quick else (60_000, 3_000, 3)))
    print(f"documents of {figures['bytes']:.0f} bytes; recall of planted copies by share of words replaced")
    print(f"{'':12}{'docs/s':>10}" + "".join(f"{rate:>8}" for rate in RATES) + f"{'precision':>11}")
    for name in ("ours", "datatrove"):
        row = figures[name]
        print(
            f"{name:12}{figures['documents_per_second'][name]:10.0f}"
            + "".join(f"{row['recall'][str(r)]:8.3f}" for r in RATES)
            + f"{row['precision']:11.3f}"
        )
    speed = figures["documents_per_second"]["ours"]
    noise = 0.02  # of recall averaged over about a thousand planted copies
    holds = speed >= 20 * MEASURED and figures["ratio"] >= 20 and figures["ours"]["all"] >= figures["datatrove"]["all"] - noise
    targets = {"documents_per_second": 20 * MEASURED, "ratio": 20, "recall_below_datatrove": noise}
    finish("deduplication", figures, targets, holds, chosen.quick)


if __name__ == "__main__":
    main()
