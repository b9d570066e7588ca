"""How long an optimizer's update takes on the `small` shape, ours against the packages', and what state it holds.

25.3M numbers in the blocks of the small model (dim 512, hidden 1376, 8 layers, query, key and value in one weight, gate and up in
another), the same gradients for both; medians of steps taken in turn. A package that takes over a second a step is timed on one layer of
the eight and multiplied. State is counted in the optimizers, against AdamW's in bfloat16 (4 bytes a parameter).

With `--clock cpu` and one thread the processor's own time is measured, which other jobs on the machine lengthen little.

    python benchmarks/optimizers.py [--quick] [--only galore,soap] [--threads 1 --clock cpu]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from results import finish

from bessemer.core import registry
from bessemer.optim._rule import Rule

warnings.filterwarnings("ignore")
LAYER = {"qkv": ((1536, 512), (512, 512, 512)), "out": ((512, 512), ()), "gate_up": ((2752, 512), (1376, 1376)), "down": ((512, 1376), ())}
Params = list[torch.nn.Parameter]


def parameters(layers: int) -> tuple[Params, list[tuple[int, ...]]]:
    made = torch.Generator().manual_seed(0)
    params, parts = [], []
    for _ in range(layers):
        for shape, cut in LAYER.values():
            params.append(torch.nn.Parameter(torch.randn(shape, generator=made) * 0.02))
            parts.append(cut)
    for p in params:
        p.grad = torch.randn(p.shape, generator=made) * 1e-3
    return params, parts


def ours(name: str, **options: Any) -> Callable[[int], torch.optim.Optimizer]:
    def make(layers: int) -> torch.optim.Optimizer:
        params, parts = parameters(layers)
        return registry.choose("optim", {"name": name, **options})([{"params": params, "parts": parts}])

    return make


def theirs(build: Callable[[Params], Any]) -> Callable[[int], Any]:
    return lambda layers: build(parameters(layers)[0])


def package(name: str) -> Any:
    """A peer, imported here; those that want bitsandbytes for variants not measured get a stand-in."""
    import pytorch_optimizer  # noqa: F401  # looks for bitsandbytes itself, so it comes before the stand-in

    for stub in ("bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.optimizer", "bitsandbytes.functional"):
        module: Any = types.ModuleType(stub)
        module.Optimizer2State, module.functional, module.__path__ = torch.optim.Optimizer, None, []
        sys.modules.setdefault(stub, module)
    return __import__(name)


LOW = {"rank": 128, "update_proj_gap": 10**6, "proj_type": "std"}


def galore(p: Params) -> Any:
    return package("galore_torch").GaLoreAdamW([{"params": p, **LOW, "scale": 0.25}], lr=1e-3, no_deprecation_warning=True)


def apollo(rank: int, scale: float, by: str) -> Callable[[Params], Any]:
    return lambda p: package("apollo_torch").APOLLOAdamW(
        [{"params": p, **LOW, "rank": rank, "scale": scale, "proj": "random", "scale_type": by}], lr=1e-3
    )


def schedule_free(p: Params) -> Any:
    made = package("schedulefree").AdamWScheduleFree(p, lr=1e-3)
    made.train()
    return made


def torchao(p: Params) -> Any:
    from torchao.optim import AdamW8bit

    return AdamW8bit(p, lr=1e-3)


def fused(p: Params) -> Any:
    return torch.optim.AdamW(p, lr=1e-3, fused=True)


FAR = {"refresh": 10**6}  # the first projection is outside the timing, as for the packages
Row = tuple[Callable[[int], Any], Callable[[int], Any] | None, int, float | None]
"""Ours, the peer, layers the peer is timed on, and the largest share of the peer's time ours may take."""
ROWS: dict[str, Row] = {
    "adamw": (ours("adamw"), theirs(fused), 8, 1.05),
    "muon": (ours("muon"), theirs(lambda p: torch.optim.Muon(p, lr=1e-3)), 8, 1 / 3),
    "galore": (ours("galore", **FAR), theirs(galore), 8, 0.5),
    "apollo": (ours("apollo", **FAR), theirs(apollo(128, 1.0, "channel")), 8, 0.5),
    "apollo_mini": (ours("apollo_mini", **FAR), theirs(apollo(1, 128.0, "tensor")), 8, 0.5),
    "adamw8bit": (ours("adamw8bit"), theirs(torchao), 8, 0.2),
    "soap": (ours("soap", every=10**6), theirs(lambda p: package("pytorch_optimizer").SOAP(p, lr=1e-3, precondition_frequency=10**6)), 1, 0.1),
    "soap bfloat16": (ours("soap", every=10**6, products="bfloat16"), None, 8, None),
    "galore bfloat16": (ours("galore", **FAR, products="bfloat16"), None, 8, None),
    "lion": (ours("lion"), theirs(lambda p: package("lion_pytorch").Lion(p, lr=1e-4)), 8, None),
    "schedule_free_adamw": (ours("schedule_free_adamw"), theirs(schedule_free), 8, None),
    "fira": (ours("fira", **FAR), None, 8, None),
    "galore8bit": (ours("galore8bit", **FAR), None, 8, None),
    "adamw4bit": (ours("adamw4bit"), None, 8, None),
    "lamb": (ours("lamb"), theirs(lambda p: package("pytorch_optimizer").Lamb(p, lr=1e-3)), 8, None),
    "lars": (ours("lars"), None, 8, None),
    "adafactor": (ours("adafactor"), theirs(lambda p: torch.optim.Adafactor(p, lr=1e-3)), 8, None),
    "sgd_sai": (ours("sgd_sai"), None, 8, None),
    "sophia": (ours("sophia"), None, 8, None),
}


def measure(row: Row, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians of steps in turn, and each one's first step."""
    mine, peer, layers, _ = row
    runs = {"ours": (mine(8), 1.0)} | ({"theirs": (peer(layers), 8 / layers)} if peer else {})
    found: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, (optimizer, factor) in runs.items():
        found[f"{name}_first_ms"] = once(optimizer, clock) * factor
        once(optimizer, clock)
    for _ in range(rounds):
        for name, (optimizer, factor) in runs.items():
            times[name].append(once(optimizer, clock) * factor)
    found |= {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    found |= {f"{name}_best_ms": min(values) for name, values in times.items()}
    optimizer = runs["ours"][0]
    held = sum(v.numel() * v.element_size() for s in optimizer.state.values() for k, v in s.items() if isinstance(v, torch.Tensor) and k != "step")
    count = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    found["bytes_per_parameter"] = held / count
    if isinstance(optimizer, Rule):
        group = optimizer.param_groups[0]
        found["documented"] = sum(optimizer.state_bytes(p.shape, 4, cut) for p, cut in zip(group["params"], group["parts"], strict=True)) / count
        # the same state with parameters in bfloat16, as AdamW's 4 bytes are
        found["saved_in_bfloat16"] = (
            1 - sum(optimizer.state_bytes(p.shape, 2, c) for p, c in zip(group["params"], group["parts"], strict=True)) / count / 4
        )
    return found


def once(optimizer: Any, clock: Callable[[], float]) -> float:
    start = clock()
    optimizer.step()
    return 1000 * (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--name", default="optimizers", help="what the results are kept as, where another machine's are to stay")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    names = asked.only.split(",") if asked.only else [n for n in ROWS if not (asked.quick and n in ("soap", "adamw8bit"))]
    figures, targets, holds = {}, {}, {}
    print(f"{'':22}{'ours ms':>9}{'peer ms':>9}{'ratio':>7}{'target':>8}{'first':>9}{'peer 1st':>10}{'B/param':>9}{'saved':>7}")
    for name in names:
        found = measure(ROWS[name], asked.rounds or (5 if asked.quick else 15), time.process_time if asked.clock == "cpu" else time.perf_counter)
        figures[name] = {k: round(v, 4) for k, v in found.items()}
        if "theirs_ms" in found:
            figures[name]["ratio"] = round(found["ours_ms"] / found["theirs_ms"], 3)
        ratio, target = found["ours_ms"] / found.get("theirs_ms", float("nan")), ROWS[name][3]
        if target:
            targets[name], holds[name] = target, ratio <= target
        shown = [found["ours_ms"], found.get("theirs_ms", float("nan")), ratio, target or float("nan"), found["ours_first_ms"]]
        shown += [found.get("theirs_first_ms", float("nan")), found["bytes_per_parameter"], found.get("saved_in_bfloat16", float("nan"))]
        forms = ("9.1f", "9.1f", "7.2f", "8.2f", "9.0f", "10.0f", "9.3f", "7.1%")
        print(f"{name:22}" + "".join(format(v, f) for v, f in zip(shown, forms, strict=True)), flush=True)
    for name, least in {"galore": 0.6, "galore8bit": 0.8}.items():
        if name in figures:
            targets[f"{name} saves"], holds[f"{name} saves"] = least, figures[name]["saved_in_bfloat16"] >= least
    if "soap" in figures:
        targets["soap bytes"], holds["soap bytes"] = 20.0, figures["soap"]["bytes_per_parameter"] < 20.0
    methods = {name: {"update_ms": f["ours_ms"], "bytes_per_parameter": f["bytes_per_parameter"]} for name, f in figures.items() if " " not in name}
    first = asked.name == "optimizers"
    finish(asked.name, figures, targets | {"held": holds}, all(holds.values()), asked.quick or bool(asked.only), methods if first else None)


if __name__ == "__main__":
    main()
