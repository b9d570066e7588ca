"""Two processes of one thread against one of two threads, ours against plain torch; and how soon eight ranks take their first step.

    python benchmarks/parallel.py [--quick] [--turns 5] [--steps 3] [--shape small] [--dtype float32] [--precision auto] [--only ours-ddp ...] [--start]

Contenders are started one by one, compiled, stopped after two steps, and then woken in turn for a few steps each (see throughput.py);
figures are medians over the turns, ratios medians of the ratios within a turn. Ours reads real text through its data pipeline, the others draw
random tokens. The others compute in `--dtype`, ours in `--precision`, as shipped auto (see throughput.py). With
--start only the start of eight ranks is timed: from the command to the end of the first step, eager, several times.
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

import psutil
from loops import SHAPES
from results import finish
from throughput import environment, tokens_store

HERE = Path(__file__).resolve().parent
TARGETS = {"times the best by hand": 1.05, "times our single process": 0.95, "eight ranks' first step, s": 12.0}
LAYOUTS = {
    "single": ({}, {}),
    "ddp": ({"data": 2}, {"shard": "none"}),
    "fsdp": ({"data": 2}, {"shard": "full"}),
    "start": ({"data": 8}, {"shard": "full"}),
}


class Watch:
    """A hook that writes the time after each of the first rank's steps into the file of the environment's WATCH."""

    listens = True

    def __init__(self, run) -> None:
        self.file = os.environ["WATCH"]

    def due(self, report) -> bool:
        return True

    def __call__(self, report) -> None:
        with open(self.file, "a") as out:
            out.write(json.dumps({"step": time.time()}) + "\n")

    def close(self) -> None:
        return


def ours(given: argparse.Namespace) -> None:
    """Trains the shape through a recipe, on the ranks of a layout."""
    import bessemer

    c, (mesh, parallel) = SHAPES[given.shape], LAYOUTS[given.ours]
    model = {"name": "decoder", **{key: c[key] for key in ("depth", "width", "heads", "ffn", "length")}, "qk_norm": "none"}
    stage = {"do": "train", "inputs": {"tokens": str(given.store / "tokenize"), "tokenizer": str(given.store / "train_tokenizer")}, "model": model}
    stage |= {"task": [{"pack": "concat"}], "optim": [{"name": "adamw", "lr": 3e-4}], "length": c["length"], "batch": c["rows"], "steps": 100_000}
    stage |= {"precision": given.precision, "compile": not given.eager, "hooks": [{"name": "parallel.Watch"}], "mesh": mesh, "parallel": parallel}
    bessemer.run({"name": "parallel", "stage": [stage]}, out=Path(tempfile.mkdtemp()) / "run", quiet=True)


class Contender:
    """A training on one or several processes, all of which run only when it is its turn."""

    def __init__(self, command: list[str], threads: int, out: Path, cache: Path) -> None:
        self.out, self.began = out, time.time()
        out.write_text("")
        env = environment(cache) | {"WATCH": str(out), "OMP_NUM_THREADS": str(threads), "BESSEMER_HANG_SECONDS": "1000000"}
        env["PYTHONPATH"] = os.pathsep.join((str(HERE), str(HERE.parent)))
        with open(f"{out}.err", "w") as errors:
            self.process = subprocess.Popen(command, stdout=errors, stderr=errors, env=env, cwd=HERE)

    def steps(self) -> list[float]:
        return [json.loads(line)["step"] for line in self.out.read_text().splitlines() if line.endswith("}")]

    def signal(self, which: int) -> None:
        process = psutil.Process(self.process.pid)
        for each in [process, *process.children(recursive=True)]:
            each.send_signal(which)

    def run(self, count: int) -> float:
        """Lets it take so many steps; the median time between two of them, in seconds, or to the very first."""
        seen = len(self.steps())
        self.signal(signal.SIGCONT)
        while len(self.steps()) < seen + count:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args}:\n{Path(f'{self.out}.err').read_text()[-3000:]}")
            time.sleep(0.02)
        self.signal(signal.SIGSTOP)
        times = self.steps()[seen : seen + count]
        return statistics.median(b - a for a, b in pairwise(times)) if count > 1 else times[0] - self.began

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()


def own(given: argparse.Namespace, shape: str) -> list[str]:
    """What starts ours."""
    return [sys.executable, str(HERE / "parallel.py"), "--shape", shape, "--precision", given.precision, "--store", str(given.store)]


def commands(given: argparse.Namespace, scratch: Path) -> dict[str, tuple[list[str], int]]:
    """By contender: what to start, and with how many threads a process."""
    eager = ["--eager"] * given.eager
    mine = [*own(given, given.shape), *eager, "--ours"]
    found = {f"ours-{name}": ([*mine, name], 2 if name == "single" else 1) for name in ("single", "ddp", "fsdp")}
    hand = [sys.executable, str(HERE / "parallel_loops.py")]
    found |= {f"hand-{name}": ([*hand, name, given.shape, given.dtype, str(scratch / f"hand-{name}"), *eager], 1) for name in ("ddp", "fsdp")}
    return {name: command for name, command in found.items() if not given.only or name in given.only}


def turns(given: argparse.Namespace, scratch: Path) -> dict[str, dict[str, float]]:
    c = SHAPES[given.shape]
    running: dict[str, Contender] = {}
    rates: dict[str, list[float]] = {}
    try:
        for name, (command, threads) in commands(given, scratch).items():
            running[name], rates[name] = Contender(command, threads, scratch / name, given.cache / name), []
            print(f"  {name} first step after {running[name].run(1):.1f} s", flush=True)
            running[name].run(2)
        for turn in range(given.turns):
            for name in sorted(running, reverse=turn % 2 == 1):
                rates[name].append(c["rows"] * c["length"] / running[name].run(given.steps))
            print("  " + "  ".join(f"{name} {each[-1]:,.0f}" for name, each in rates.items()), flush=True)
    finally:
        for each in running.values():
            each.end()
    hand = [max(pair) for pair in zip(*(each for name, each in rates.items() if name.startswith("hand")), strict=True)]
    table = {name: {"tokens_per_second": statistics.median(each)} for name, each in rates.items()}
    for name in ("ours-ddp", "ours-fsdp"):
        own = rates.get(name.replace("ours", "hand"), [])
        single = rates.get("ours-single", [])
        for key, others in (("times the best by hand", hand), ("times this layout by hand", own), ("times our single process", single)):
            if name in rates and others:
                table[name][key] = statistics.median(a / b for a, b in zip(rates[name], others, strict=True))
    return table


def starts(given: argparse.Namespace, scratch: Path, times: int) -> list[float]:
    """Seconds from the command to the end of the first step of eight ranks."""
    command = [*own(given, "tiny"), "--eager", "--ours"]
    found = []
    for number in range(times):
        each = Contender([*command, "start"], 1, scratch / f"start-{number}", given.cache / "start")
        try:
            found.append(each.run(1))
        finally:
            each.end()
        print(f"  eight ranks: first step after {found[-1]:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny shape, eager, one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each contender in a turn")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--ours", choices=sorted(LAYOUTS))
    parser.add_argument("--store", type=Path, default=HERE.parent / ".peers" / "throughput-store")
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".peers" / "parallel-cache", help="of compiled code, kept between runs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so ends the contenders
    if given.ours:
        ours(given)
        return
    if given.quick:
        given.turns, given.steps, given.shape, given.eager = 1, 2, "tiny", True
    tokens_store(given.store)
    with tempfile.TemporaryDirectory() as folder:
        table = {} if given.start else turns(given, Path(folder))
        first = starts(given, Path(folder), 1 if given.quick else 3) if given.start or not given.only else []
    rounded = {name: {key: round(value, 3) for key, value in row.items()} for name, row in table.items()}
    figures = rounded | {"shape": given.shape, "dtype": given.dtype, "precision": given.precision, "compiled": not given.eager}
    if first:
        figures["eight ranks' first step, s"] = round(statistics.median(first), 2)
    mine = [row for name, row in table.items() if name in ("ours-ddp", "ours-fsdp")]
    holds = all(row.get(key, 0.0) >= TARGETS[key] for row in mine for key in ("times the best by hand", "times our single process"))
    holds = holds and figures.get("eight ranks' first step, s", 0.0) <= TARGETS["eight ranks' first step, s"]
    finish("parallel_start" if given.start else "parallel", figures, TARGETS, holds, given.quick)


if __name__ == "__main__":
    main()
