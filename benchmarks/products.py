"""Products of the reference shapes' layers on tiles by our own kernels against torch's in float32: forward and both gradients.

    python benchmarks/products.py [--quick] [--turns 9] [--threads 2] [--precision medium]

For each matrix both take turns in one process; medians. `medium` rounds factors to bfloat16, as layers do by default; "high" and "highest" take
two and three parts of each, as optimizers may. The last figures weigh each product by how often a step of the shape has it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from results import finish
from torch import Tensor

from bessemer.core.products import PARTS, Product, fast, multiply

LAYERS = {
    "tiny": {"qkv": (768, 256, 8), "out": (256, 256, 8), "gate and up": (1376, 256, 8), "down": (256, 688, 8)},
    "small": {"qkv": (1536, 512, 8), "out": (512, 512, 8), "gate and up": (2752, 512, 8), "down": (512, 1376, 8)},
}
"""Outputs, inputs and how many there are of each matrix."""
ROWS = 4096
"""Tokens of a step, of both shapes."""
TARGET = 1.0


def in_turns(turns: int, *functions: Callable[[], object]) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(turns + 2):
        for function, kept in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            if turn > 1:
                kept.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(kept) for kept in times]


def of_layer(outputs: int, inputs: int, rows: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Factors and result of the three products of a layer's step."""
    x, weight, grad = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    made = {"forward": (x, weight.T), "of inputs": (grad, weight), "of weights": (grad.T, x)}
    return {name: (a, b, torch.empty(a.shape[0], b.shape[1])) for name, (a, b) in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=list(PARTS), default="medium", help="of ours; torch's is float32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not fast():
        print("this processor has no tiles that a program may use: torch multiplies")
        return finish("products", {}, {}, False, True)
    figures: dict[str, object] = {}
    for shape, layers in LAYERS.items():
        sums = [0.0, 0.0]
        for layer, (outputs, inputs, count) in layers.items():
            for name, (a, b, out) in of_layer(outputs, inputs, 256 if given.quick else ROWS).items():
                work = 2e-6 * a.shape[0] * a.shape[1] * b.shape[1]
                theirs, ours = in_turns(
                    2 if given.quick else given.turns,
                    lambda a=a, b=b, out=out: torch.mm(a, b, out=out),
                    lambda a=a, b=b, out=out: multiply([Product(a, b, out, parts=PARTS[given.precision])]),
                )
                sums = [sums[0] + count * theirs, sums[1] + count * ours]
                key = f"{shape} {layer} {name}"
                figures[key] = {"torch ms": theirs, "ours ms": ours, "torch GFLOP/s": work / theirs, "ours GFLOP/s": work / ours}
                print(f"{key:32s} {theirs:7.2f} {ours:7.2f} ms {work / theirs:7.0f} {work / ours:7.0f} GFLOP/s  {theirs / ours:.2f}x", flush=True)
        figures[f"{shape} step"] = {"torch ms": sums[0], "ours ms": sums[1], "times": sums[0] / sums[1]}
        print(f"{shape} step: {sums[0]:.0f} ms by torch, {sums[1]:.0f} here, {sums[0] / sums[1]:.2f}x")
    holds = all(figures[f"{shape} step"]["times"] >= TARGET for shape in LAYERS)  # type: ignore[index]
    finish("products", figures, {"times torch": TARGET}, holds, given.quick)


if __name__ == "__main__":
    main()
