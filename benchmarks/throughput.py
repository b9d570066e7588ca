"""Tokens a second of training, ours as shipped against loops written by hand and peers, interleaved in one run.

    python benchmarks/throughput.py [--quick] [--rounds 3] [--seconds 12] [--dtype bfloat16|float32] [--loops by_hand ...]

Every contender trains the same shape with fused AdamW and clipping at 1, compiled, in the number format that is fastest on
this machine; ours reads real text through its data pipeline and writes its logs, the others draw random tokens. Each runs in a process of
its own, in turn, round after round; the medians of the rounds count. MFU: 6 x the weights in matrix products plus causal attention (the
masked half not counted), over the largest matrix product rate measured in the same rounds (1,536 cubed, same format).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loops import SHAPES
from peers import peer_python
from results import finish

HERE = Path(__file__).resolve().parent
TARGETS = {
    "tiny": {"times the best peer": 1.15, "mfu": 0.58},
    "small": {"times the best peer": 1.08, "mfu": 0.72},
    "first step cold, s": 15,
    "first step warm, s": 6,
}
PEERS = ["torch==2.13.0", "transformers", "litgpt"]


def environment(cache: Path) -> dict[str, str]:
    """What every contender runs in; importing our device module takes oneDNN off tiles that this machine only claims to have."""
    from bessemer.core import device

    assert device.compute_dtype() is not None
    return os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}


def tokens_store(folder: Path) -> Path:
    """Tokens of this machine's Python sources over a vocabulary of 8,192, made once."""
    import bessemer

    stages = [
        {"do": "collect", "sources": [{"name": "stdlib", "megabytes": {"code": 24.0, "prose": 4.0}}]},
        {"do": "train_tokenizer", "vocabulary": 8192, "megabytes": 8.0},
        {"do": "tokenize"},
    ]
    bessemer.run({"name": "throughput", "stage": stages}, out=folder, quiet=True)
    return folder


class Watch:
    """A hook that notes the wall clock after each step, so that everything between two steps counts."""

    def __init__(self, run) -> None:
        self.run, self.times = run, []

    def due(self, report) -> bool:
        return True

    def __call__(self, report) -> None:
        self.times.append(time.time())
        enough = len(self.times) > 6 and self.times[-1] - self.times[1] > float(os.environ["WATCH_SECONDS"])
        if enough:
            import resource

            gaps = [b - a for a, b in zip(self.times[1:], self.times[2:], strict=False)]
            figures = {"tokens_per_second": report.tokens / statistics.median(gaps), "best": report.tokens / min(gaps)}
            figures |= {"first_step": self.times[0] - float(os.environ["WATCH_BEGAN"]), "flops_per_token": self.run.flops_per_token}
            figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(figures), flush=True)
            os._exit(0)

    def close(self) -> None:
        return


def ours(shape: str, dtype: str, store: Path) -> None:
    """Trains the shape through a recipe, until the hook has seen enough."""
    import bessemer

    c = SHAPES[shape]
    model = {
        "name": "decoder",
        "depth": c["depth"],
        "width": c["width"],
        "heads": c["heads"],
        "ffn": c["ffn"],
        "qk_norm": "none",
        "length": c["length"],
    }
    stage = {"do": "train", "inputs": {"tokens": str(store / "tokenize"), "tokenizer": str(store / "train_tokenizer")}, "model": model}
    stage |= {"task": [{"pack": "concat"}], "optim": [{"name": "adamw", "lr": 3e-4}], "length": c["length"], "batch": c["rows"], "steps": 100_000}
    stage |= {"precision": dtype, "compile": True, "hooks": [{"name": "throughput.Watch"}]}
    bessemer.run({"name": "throughput", "stage": [stage]}, out=Path(tempfile.mkdtemp()) / "run", quiet=True)


def call(command: list[str], env: dict[str, str]) -> dict[str, float]:
    env = env | {"WATCH_BEGAN": str(time.time()), "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=HERE)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def peak(dtype: str) -> float:
    import torch

    from bessemer.core import device

    device.matrix_peak.cache_clear()
    return device.matrix_peak(getattr(torch, dtype), seconds=1.0)


def measure(given: argparse.Namespace, shape: str, store: Path, python: str, caches: Path) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {}
    peaks = []
    mine = [sys.executable, str(HERE / "throughput.py"), "--ours", shape, "--dtype", given.dtype, "--store", str(store)]
    for _ in range(given.rounds):
        commands = {"ours": mine} | {name: [python, str(HERE / "loops.py"), name, shape, given.dtype, str(given.seconds)] for name in given.loops}
        if "by_hand" in given.loops:
            commands["by_hand eager"] = [*commands["by_hand"], "--eager"]
        for name, command in commands.items():
            env = environment(caches / name.replace(" ", "_")) | {"WATCH_SECONDS": str(given.seconds)}
            found.setdefault(name, []).append(call(command, env))
            peaks.append(peak(given.dtype))
            print(f"  {shape:6s} {name:14s} " + "  ".join(f"{k} {v:,.1f}" for k, v in found[name][-1].items() if k != "flops_per_token"), flush=True)
    table = {name: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]} for name, rounds in found.items()}
    table["ours"]["cold"] = found["ours"][0]["first_step"]
    table["ours"]["warm"] = min(each["first_step"] for each in found["ours"][1:] or found["ours"])
    table["ours"]["peak_gflops"] = max(peaks) / 1e9
    table["ours"]["mfu"] = table["ours"]["tokens_per_second"] * table["ours"]["flops_per_token"] / max(peaks)
    best = max(value["tokens_per_second"] for name, value in table.items() if name != "ours")
    table["ours"]["times the best peer"] = table["ours"]["tokens_per_second"] / best
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--loops", nargs="*", default=["by_hand", "transformers", "litgpt"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--ours")
    parser.add_argument("--store", type=Path, default=HERE.parent / ".peers" / "throughput-store")
    given = parser.parse_args()
    from bessemer.core import device

    given.dtype = given.dtype or str(device.compute_dtype()).removeprefix("torch.")
    if given.ours:
        ours(given.ours, given.dtype, given.store)
        return
    if given.quick:
        given.rounds, given.seconds, given.loops, given.shapes = 1, 3, ["by_hand"], ["tiny"]
    python = peer_python("throughput", PEERS) if set(given.loops) - {"by_hand"} else sys.executable
    store = tokens_store(given.store)
    with tempfile.TemporaryDirectory() as caches:
        figures = {shape: measure(given, shape, store, python, Path(caches)) for shape in given.shapes}
    holds = all(figures[s]["ours"][key] >= TARGETS[s][key] for s in given.shapes for key in TARGETS[s])
    rounded = {s: {n: {k: round(v, 3) for k, v in t.items()} for n, t in table.items()} for s, table in figures.items()}
    finish("throughput", rounded | {"dtype": given.dtype}, TARGETS, holds, given.quick)


if __name__ == "__main__":
    main()
