"""Tokens a second of training, ours as shipped against loops written by hand and peers, taking turns in one run.

    python benchmarks/throughput.py [--quick] [--turns 7] [--dtype bfloat16|float32] [--loops by_hand ...]

Every contender trains the same shape with fused AdamW and clipping at 1, compiled, in the number format that is fastest on
this machine (ours where torch can't reach the processor's tiles: float32 whose products round their factors to bfloat16 on them; `--dtype
float32` holds it to exact products); ours reads real text through its data pipeline and writes its logs, the others draw random tokens. First each is
started alone, with an empty compiler cache and then with a full one, for the time to the first step. Then all are kept, stopped, and
woken in turn for four steps each, so that a slow minute of a shared machine is slow for all; figures are medians over the turns, ratios medians of the
ratios within a turn. MFU: 6 x the weights in matrix products plus causal attention (the masked half not counted), over the rate of torch's
matrix products measured in the same turn (1,536 cubed, the peers' format); "mfu of own products" takes the rate of those that ours uses.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
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
    """A hook that tells the wall clock after each step, so that everything between two steps counts."""

    def __init__(self, run) -> None:
        self.run = run

    def due(self, report) -> bool:
        return True

    def __call__(self, report) -> None:
        print(json.dumps({"step": time.time(), "flops_per_token": self.run.flops_per_token}), flush=True)

    def close(self) -> None:
        return


def ours(shape: str, precision: str, store: Path) -> None:
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
    stage |= {"precision": precision, "compile": True, "hooks": [{"name": "throughput.Watch"}]}
    bessemer.run({"name": "throughput", "stage": [stage]}, out=Path(tempfile.mkdtemp()) / "run", quiet=True)


class Contender:
    """One training process, which tells the time after each step and runs only when it is its turn."""

    def __init__(self, command: list[str], env: dict[str, str], out: Path) -> None:
        self.out, self.began = out, time.time()
        with open(out, "w") as told, open(f"{out}.err", "w") as errors:
            self.process = subprocess.Popen(command, stdout=told, stderr=errors, env=env | {"PYTHONPATH": os.pathsep.join(_path())}, cwd=HERE)

    def steps(self) -> list[dict[str, float]]:
        lines = self.out.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def run(self, count: int) -> float:
        """Lets it take so many steps; the median time between two of them, in seconds."""
        os.kill(self.process.pid, signal.SIGCONT)
        seen = len(self.steps())
        while len(self.steps()) < seen + count:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args}:\n{Path(f'{self.out}.err').read_text()[-2000:]}")
            time.sleep(0.02)
        os.kill(self.process.pid, signal.SIGSTOP)
        times = [each["step"] for each in self.steps()[seen : seen + count]]
        return statistics.median(b - a for a, b in pairwise(times)) if count > 1 else times[0] - self.began

    def peak_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _path() -> list[str]:
    """Where the contenders import from: these benchmarks, and this tree before any installed one."""
    return [str(HERE), str(HERE.parent)]


def peak(dtype: str, own: bool) -> tuple[float, float]:
    """Of torch's products, and of those that ours uses."""
    import torch

    from bessemer.core import device, products

    device.matrix_peak.cache_clear()
    products.peak.cache_clear()
    with products.rounded(own):
        return device.matrix_peak(getattr(torch, dtype), seconds=1.0), products.peak(getattr(torch, dtype))


def measure(given: argparse.Namespace, shape: str, store: Path, python: str, scratch: Path) -> dict[str, dict[str, float]]:
    mine = [sys.executable, str(HERE / "throughput.py"), "--ours", shape, "--precision", given.precision, "--store", str(store)]
    commands = {"ours": mine} | {name: [python, str(HERE / "loops.py"), name, shape, given.dtype] for name in given.loops}
    if "by_hand" in given.loops:
        commands["by_hand eager"] = [*commands["by_hand"], "--eager"]
    table: dict[str, dict[str, float]] = {}
    running: dict[str, Contender] = {}
    try:
        for name, command in commands.items():
            env = environment(scratch / name.replace(" ", "_"))
            firsts = []
            for again in range(given.starts):
                running[name] = Contender(command, env, scratch / f"{shape}-{name.replace(' ', '_')}")
                firsts.append(running[name].run(1))
                if again + 1 < given.starts:
                    running[name].end()
            table[name] = {"first step cold": firsts[0], "first step warm": statistics.median(firsts[1:] or firsts)}
            print(f"  {shape:6s} {name:14s} first step {firsts[0]:.1f} s cold, then {', '.join(f'{each:.1f}' for each in firsts[1:])}", flush=True)
        turns(given, shape, running, table)
        for name, each in running.items():
            table[name]["peak_mb"] = each.peak_megabytes()
    finally:
        for each in running.values():
            each.end()
    return table


def turns(given: argparse.Namespace, shape: str, running: dict[str, Contender], table: dict[str, dict[str, float]]) -> None:
    """Wakes the contenders in turn and fills in the table."""
    c = SHAPES[shape]
    tokens = c["rows"] * c["length"]
    rates: dict[str, list[float]] = {name: [] for name in running}
    peaks: list[tuple[float, float]] = []
    for each in running.values():
        each.run(2)
    for turn in range(given.turns):
        peaks.append(peak(given.dtype, given.precision == "auto"))
        for name in sorted(running, reverse=turn % 2 == 1):
            rates[name].append(tokens / running[name].run(given.steps))
        told = "  ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items())
        print(f"  {shape:6s} {told}  peak {' and '.join(f'{each / 1e9:.0f}' for each in peaks[-1])}", flush=True)
    for name, each in rates.items():
        table[name]["tokens_per_second"] = statistics.median(each)
        if name != "ours":
            table[name]["ours is faster by"] = statistics.median(a / b for a, b in zip(rates["ours"], each, strict=True))
    flops = running["ours"].steps()[-1]["flops_per_token"]
    for place, of in enumerate(("", " of own products")):
        limits = [both[place] for both in peaks]
        table["ours"][f"peak_gflops{of}"] = statistics.median(limits) / 1e9
        table["ours"][f"mfu{of}"] = statistics.median(a * flops / b for a, b in zip(rates["ours"], limits, strict=True))
    table["ours"]["times the best peer"] = min(row["ours is faster by"] for name, row in table.items() if name != "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="throughput", help="what the results are kept as, where another machine's are to stay")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each contender in a turn")
    parser.add_argument("--starts", type=int, default=4, help="of each contender, for the time to the first step")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--loops", nargs="*", default=["by_hand", "transformers", "litgpt"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--precision", help="of ours, if not the peers' or auto")
    parser.add_argument("--ours")
    parser.add_argument("--store", type=Path, default=HERE.parent / ".peers" / "throughput-store")
    given = parser.parse_args()
    from bessemer.core import device

    given.precision = given.precision or given.dtype or "auto"
    given.dtype = given.dtype or str(device.compute_dtype()).removeprefix("torch.")
    if given.ours:
        ours(given.ours, given.precision, given.store)
        return
    if given.quick:
        given.turns, given.starts, given.loops, given.shapes = 1, 1, ["by_hand"], ["tiny"]
    python = peer_python("throughput", PEERS) if set(given.loops) - {"by_hand"} else sys.executable
    store = tokens_store(given.store)
    with tempfile.TemporaryDirectory() as caches:
        figures = {shape: measure(given, shape, store, python, Path(caches)) for shape in given.shapes}
    holds = all(figures[s]["ours"][key] >= TARGETS[s][key] for s in given.shapes for key in TARGETS[s])
    holds = holds and all(
        figures[s]["ours"][f"first step {start}"] <= TARGETS[f"first step {start}, s"] for s in given.shapes for start in ("cold", "warm")
    )
    holds = holds and all(table["ours"]["peak_mb"] <= min(row["peak_mb"] for row in table.values()) for table in figures.values())
    rounded = {s: {n: {k: round(v, 3) for k, v in t.items()} for n, t in table.items()} for s, table in figures.items()}
    finish(given.name, rounded | {"dtype": given.dtype}, TARGETS, holds, given.quick)


if __name__ == "__main__":
    main()
