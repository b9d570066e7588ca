"""What going through the loop and the engine costs beside a step written by hand, on one process.

    python benchmarks/engine.py [--quick] [--shape tiny] [--eager] [--steps 120]

A hook takes a second step on the very model, with the very batches and optimizers, written out by hand: forward, the objective's sum over the
count, backward, for each micro-batch; clip; step. So both go through the same compiled code, in turn, in the same minute. Ours is everything from the end
of the hook to its next call: reading and preparing data, schedules, guard, clock, metrics. Medians; the ratio is that of pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loops import SHAPES
from results import finish
from throughput import tokens_store

TARGET = 1.01
WARM = 12
TIMES: list[tuple[float, float]] = []


class ByHand:
    """The hook: (our step's seconds, the same by hand) into `TIMES`."""

    def __init__(self, run) -> None:
        self.run, self.ended = run, None

    def due(self, report) -> bool:
        return True

    def __call__(self, report) -> None:
        began = time.perf_counter()
        self.step(report.batches)
        after = time.perf_counter()
        if self.ended is not None:
            TIMES.append((began - self.ended, after - began))
        self.ended = time.perf_counter()

    def step(self, batches) -> float:
        run = self.run
        objective, _ = run.engine.objectives["text"]
        total = sum(batch.weights["next_token"].sum() for batch in batches)
        loss = 0.0
        for batch in batches:
            with torch.autocast("cpu", run.engine.dtype, enabled=run.engine.dtype != torch.float32):
                share = objective(run.model(batch), batch).terms["next_token"].sum / total
            share.backward()
            loss += float(share.detach())
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers.moving:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss

    def close(self) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--store", type=Path, default=Path(__file__).resolve().parent.parent / ".peers" / "throughput-store")
    given = parser.parse_args()
    import bessemer

    c = SHAPES[given.shape]
    model = {"name": "decoder", "depth": c["depth"], "width": c["width"], "heads": c["heads"], "ffn": c["ffn"], "qk_norm": "none"}
    if given.quick:
        model, given.steps = model | {"depth": 2}, WARM + 8
    store = tokens_store(given.store)
    stage = {"do": "train", "inputs": {"tokens": str(store / "tokenize"), "tokenizer": str(store / "train_tokenizer")}, "model": model}
    stage |= {"task": [{"pack": "concat"}], "optim": [{"name": "adamw", "lr": 3e-4}], "length": c["length"], "batch": c["rows"]}
    stage |= {"micro_batch": c["rows"] // 2, "steps": given.steps, "compile": not given.eager, "precision": "float32"}
    stage["hooks"] = [{"name": f"{ByHand.__module__}.ByHand"}]
    bessemer.run({"name": "engine", "stage": [stage]}, out=Path(tempfile.mkdtemp()) / "run", quiet=True)
    pairs = TIMES[WARM:]
    figures = {
        "ours_ms": round(1000 * statistics.median(ours for ours, _ in pairs), 3),
        "by_hand_ms": round(1000 * statistics.median(hand for _, hand in pairs), 3),
        "ratio": round(statistics.median(ours / hand for ours, hand in pairs), 4),
        "pairs": len(pairs),
        "shape": given.shape,
        "compiled": not given.eager,
    }
    finish("engine", figures, {"ratio": TARGET}, figures["ratio"] <= TARGET, given.quick)


if __name__ == "__main__":
    import engine  # under its own name, where the recipe finds the hook

    engine.main()
