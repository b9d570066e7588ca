"""Does the best learning rate carry over? The same sweep at depth 4 and at depth 12, everything else following from depth.

    python benchmarks/transfer.py [--quick] [--aspect 16] [--tokens 300000] [--seeds 1]

The width is `aspect` x depth (the recipe's own dial has 64; 16 fits an hour of two cores), heads of 16. Both optimizers' rates are
multiplied by the same factor. The best factor is the vertex of a parabola through the best grid point and its two neighbours, in
the logarithm of the factor. Target: the two vertices within a factor of 1.4.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from pathlib import Path

import numpy
import torch
from results import finish

from bessemer.core import device, registry, rng
from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.train import optimizers
from bessemer.train.engine import Engine

LENGTH, ROWS = 128, 16


def text(megabytes: float) -> numpy.ndarray:
    """Bytes of the standard library's sources: a vocabulary of 256 needs no tokenizer."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    joined = b"".join(file.read_bytes() for file in files)[: int(megabytes * 1e6)]
    return numpy.frombuffer(joined, dtype=numpy.uint8)


def batch(data: numpy.ndarray, step: int, seed: int):
    starts = rng.numpy_generator(seed, "transfer", step).integers(0, len(data) - LENGTH - 1, ROWS)
    rows = torch.from_numpy(numpy.stack([data[s : s + LENGTH + 1] for s in starts]).astype(numpy.int64))
    return Batch(rows[:, :-1], torch.arange(LENGTH).expand(ROWS, LENGTH), None, rows[:, 1:], {"next_token": torch.ones(ROWS, LENGTH)})


def train(data: numpy.ndarray, depth: int, factor: float, steps: int, aspect: int, seed: int, optim: str) -> float:
    """The mean loss of the last tenth of a run, in nats a byte."""
    model = Decoder(256, seed, depth=depth, width=aspect * depth, head_size=16)
    choose = [{"name": "adamw", "lr": 3e-3 * factor}]
    if optim == "muon":
        choose = [{"role": "matrix", "name": "muon", "lr": 0.02 * factor}, *choose]
    entries = [registry.choose("optim", entry, optimizers.TAGS) for entry in choose]
    made = optimizers.build(model, entries, parameter_roles(model))
    engine = Engine(model, {"text": (registry.choose("objectives", "next_token")(), 1.0)}, torch.float32)
    schedule = registry.choose("schedules", {"name": "linear", "warmup": 0.1})
    last = []
    for step in range(steps):
        made.set_factor(schedule(Progress(step=step, steps=steps)))
        last.append(engine.forward_backward([batch(data, step, seed)]).loss)
        engine.clip(1.0)
        made.step()
        made.zero_grad()
    return float(numpy.mean(last[-max(1, steps // 10) :]))


def vertex(factors: list[float], losses: list[float]) -> float:
    """The factor at the lowest point of the parabola through the best grid point and its neighbours."""
    best = min(max(int(numpy.argmin(losses)), 1), len(losses) - 2)
    x = numpy.log2(factors[best - 1 : best + 2])
    curve, slope, _ = numpy.polyfit(x, losses[best - 1 : best + 2], 2)
    return float(2 ** numpy.clip(-slope / (2 * curve), x[0], x[2])) if curve > 0 else factors[int(numpy.argmin(losses))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--aspect", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--optim", choices=["muon", "adamw"], default="muon")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[2.0 ** (k / 2) for k in range(-4, 5)], help="what the default rates are multiplied by"
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12])
    given = parser.parse_args()
    steps = 8 if given.quick else given.tokens // (LENGTH * ROWS)
    depths = [1, 2] if given.quick else given.depths
    factors = [0.5, 1.0, 2.0] if given.quick else given.factors
    data, began = text(8), time.time()
    table: dict[int, list[float]] = {}
    for depth in depths:
        table[depth] = []
        for factor in factors:
            losses = [train(data, depth, factor, steps, given.aspect, seed, given.optim) for seed in range(given.seeds)]
            table[depth].append(float(numpy.mean(losses)))
            print(f"depth {depth:3d}  rate x {factor:6.3f}  loss {table[depth][-1]:.4f}  {time.time() - began:6.0f} s", flush=True)
    best = {depth: vertex(factors, losses) for depth, losses in table.items()}
    gap = 2 ** abs(math.log2(max(best.values()) / min(best.values())))
    print("best factor: " + ", ".join(f"depth {depth} x {value:.2f}" for depth, value in best.items()) + f"; apart by {gap:.2f}")
    figures = {
        "best_factor": {str(k): round(v, 3) for k, v in best.items()},
        "losses": {str(k): [round(x, 4) for x in v] for k, v in table.items()},
        "factors": [round(f, 3) for f in factors],
        "apart": round(gap, 3),
        "optim": given.optim,
        "steps": steps,
        "aspect": given.aspect,
        "threads": torch.get_num_threads(),
        "tiles_avoided": device.TILES_AVOIDED,
    }
    finish("transfer" if given.optim == "muon" else "transfer_adamw", figures, {"apart": 1.4}, gap <= 1.4, given.quick)


if __name__ == "__main__":
    main()
