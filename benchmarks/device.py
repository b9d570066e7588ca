"""A decoder of the 1B class on one device: tokens a second, the share of the device's matrix rate, and memory, by what is computed again.

    python benchmarks/device.py [--quick] [--rows 4] [--steps 20] [--remat none selective full]

Rows of 4,096 tokens, bfloat16, compiled, AdamW, through the engine. MFU: the model's operations (6 x weights plus causal attention, the masked half
not counted) over the matrix rate measured just before. Memory is the peak of the whole step. Each way runs in a process of its own. With
--quick a tiny model in float32 goes the same way, on whatever is here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from results import finish

TARGET = 0.5
LARGE = {"depth": 16, "width": 2048, "heads": 16, "kv_heads": 8, "head_size": 128, "ffn": 8192, "length": 4096}
TINY = {"depth": 2, "width": 64, "heads": 2, "kv_heads": 2, "head_size": 32, "ffn": 128, "length": 64}
VOCABULARY = {False: 50304, True: 256}


def one(given: argparse.Namespace) -> dict[str, float]:
    """One way of training, in this process."""
    import torch

    from bessemer.core import device
    from bessemer.core.batch import Batch
    from bessemer.core.mesh import World
    from bessemer.core.registry import choose
    from bessemer.models.transfer import parameter_roles
    from bessemer.parallel.order import Parallel, spread
    from bessemer.train import optimizers
    from bessemer.train.engine import Engine

    here, sizes, vocabulary = device.device(), TINY if given.quick else LARGE, VOCABULARY[given.quick]
    dtype = torch.float32 if given.quick else torch.bfloat16
    peak = device.matrix_peak(dtype, seconds=0.2 if given.quick else 2.0)
    with here:
        model = choose("models/families", {"name": "decoder", **sizes})(vocabulary, 0).train()
    flops = model.flops_per_token(sizes["length"])
    layout = spread(model, World(), Parallel(remat=given.one), compile=not given.eager, dtype=dtype)
    moving = optimizers.build(model, [choose("optim", "adamw", optimizers.TAGS)], parameter_roles(model))
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, dtype, layout)
    draw = torch.Generator().manual_seed(0)
    places = torch.arange(sizes["length"]).expand(given.rows, -1)

    def step() -> float:
        tokens = torch.randint(0, vocabulary, (given.rows, sizes["length"] + 1), generator=draw)
        weights = {"next_token": torch.ones(given.rows, sizes["length"])}
        begun = time.perf_counter()
        engine.forward_backward([Batch(tokens[:, :-1], places, None, tokens[:, 1:], weights)])
        engine.clip(1.0)
        moving.step()
        moving.zero_grad()
        device.synchronise()
        return time.perf_counter() - begun

    for _ in range(3):
        step()
    rate = given.rows * sizes["length"] / statistics.median(step() for _ in range(given.steps))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": round(rate, 1),
        "mfu": round(rate * flops / peak, 4),
        "peak_tflops": round(peak / 1e12, 3),
        "memory_gb": round(device.peak_memory() / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--remat", nargs="*", default=["none", "selective", "full"])
    parser.add_argument("--one", help="this way alone, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given)))
        return
    given.steps, given.eager = (3, True) if given.quick else (given.steps, given.eager)
    command = [sys.executable, __file__, "--rows", str(given.rows), "--steps", str(given.steps)]
    command += ["--quick"] * given.quick + ["--eager"] * given.eager
    figures = {}
    for way in given.remat:
        done = subprocess.run([*command, "--one", way], capture_output=True, text=True)
        figures[way] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr.strip().splitlines()[-1]}
        print(f"  {way}: {figures[way]}", flush=True)
    best = max((row.get("mfu", 0.0) for row in figures.values()), default=0.0)
    finish("device", figures, {"mfu": TARGET}, best >= TARGET, given.quick)


if __name__ == "__main__":
    main()
