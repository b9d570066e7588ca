"""Low-rank and sparse layers at equal tokens: pre-training from scratch, and fine-tuning on text of another kind.

Bytes of the standard library's sources, a small decoder, AdamW. All methods take their steps in turn on the same batches, so the times are
comparable on a busy machine; each is run at every rate of a small grid and counts at its best. Pre-training methods also train everything
outside the blocks, fine-tuning ones nothing else, and begin from the fully pre-trained model. Memory is counted: weights, places, gradients,
optimizer state, and what one forward pass keeps for the backward pass.

    python benchmarks/low_rank.py [--quick] [--steps 150] [--tune-steps 60] [--threads 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from results import finish

from bessemer.core import registry, rng
from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.models.families.decoder import Decoder
from bessemer.models.reparameterize.sltrain import SLTrainMatrix
from bessemer.models.reparameterized import KIND, matrices, merge, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.train import optimizers
from bessemer.train.engine import Engine

LENGTH, ROWS, HELD_OUT = 128, 8, 24
SHAPE = {"depth": 3, "width": 128, "head_size": 32, "length": LENGTH}
Options = dict[str, Any]


def pretraining(steps: int) -> dict[str, Options | None]:
    """Each method with its paper's proportions, its intervals scaled to a run this short."""
    often = max(2, steps // 8)
    return {
        "full": None,
        "lora": {"rank": "auto", "alpha": 32.0, "others": "train"},
        "relora": {"every": often},
        "switch_lora": {},
        "sltrain": {},
        "lost": {},
        "sparse_spectral": {"every": max(2, steps // 40)},
        "refactorize": {"every": often},
    }


TUNING: dict[str, Options | None] = {
    "full": None,
    "lora": {"rank": 8, "alpha": 8.0},
    "dora": {"rank": 8, "alpha": 8.0},
    "pissa": {"rank": 8},
    "bone": {"rank": 8},
    "bone, unguided": {"rank": 8, "guide": False},
    "ssf": {},
}


def text(files: list[Path]) -> numpy.ndarray:
    return numpy.frombuffer(b"".join(file.read_bytes() for file in files), dtype=numpy.uint8)


def batch(data: numpy.ndarray, purpose: str, step: int, seed: int) -> Batch:
    """Rows of the first nine tenths for training, of the rest for measuring."""
    cut = len(data) * 9 // 10
    low, high = (cut, len(data) - LENGTH - 1) if purpose == "held_out" else (0, cut - LENGTH - 1)
    starts = rng.numpy_generator(seed, purpose, step).integers(low, high, ROWS)
    rows = torch.from_numpy(numpy.stack([data[s : s + LENGTH + 1] for s in starts]).astype(numpy.int64))
    return Batch(rows[:, :-1], torch.arange(LENGTH).expand(ROWS, LENGTH), None, rows[:, 1:], {"next_token": torch.ones(ROWS, LENGTH)})


class Contender:
    """A model under one method at one rate, taking its steps."""

    def __init__(self, model: Decoder, name: str, options: Options | None, rate: float, steps: int, seed: int) -> None:
        self.name, self.rate, self.seed, self.state = name, rate, seed, 0
        self.times: list[float] = []
        method = name.split(",")[0]
        self.model: Any = model if options is None else reparameterize(model, registry.choose(KIND, {"name": method, **options}), seed)
        self.optimizers = optimizers.build(
            self.model, [registry.choose("optim", {"name": "adamw", "lr": rate}, optimizers.TAGS)], parameter_roles(self.model)
        )
        self.engine = Engine(self.model, {"text": (registry.choose("objectives", "next_token")(), 1.0)}, torch.float32)
        self.progress = Progress(steps=steps)
        restarts = method in ("relora", "refactorize")
        table = {"name": "jagged", "every": options["every"], "rise": 5} if restarts and options else {"name": "cosine"}
        self.schedule = registry.choose("schedules", {**table, "warmup": 0.05})

    def step(self, data: Batch) -> None:
        start = time.perf_counter()
        self.optimizers.set_factor(self.schedule(self.progress))
        result = self.engine.forward_backward([data])
        self.engine.clip(1.0)
        self.optimizers.step()
        self.state = max(self.state, self.optimizers.state_bytes())
        for module in self.model.modules():
            if hasattr(module, "after_step"):
                module.after_step(self.progress, self.optimizers, result.counts)
        self.optimizers.zero_grad()
        self.progress.step += 1
        self.times.append(time.perf_counter() - start)

    @torch.no_grad()
    def measure(self, data: numpy.ndarray) -> float:
        """Nats a byte on held-out rows."""
        found = []
        for number in range(HELD_OUT):
            rows = batch(data, "held_out", number, self.seed)
            found.append(torch.nn.functional.cross_entropy(self.model(rows).logits().flatten(0, 1), rows.targets.flatten()))
        return float(torch.stack(found).mean())

    def bytes(self, data: Batch) -> dict[str, int]:
        """What training holds, in bytes."""
        own = [*self.model.parameters(), *self.model.buffers()]
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.model(data)
        held = {tensor.untyped_storage().data_ptr() for tensor in own}
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "trained": trained,
            "weights": sum(t.numel() * t.element_size() for t in own),
            "state": self.state,
            "gradients": 4 * trained,
            "kept": sum(size for place, size in kept.items() if place not in held),
        }


def compete(label: str, start: Any, methods: dict[str, Options | None], rates: tuple[float, ...], steps: int, data: Any, seed: int) -> dict[str, Any]:
    """Every method at every rate, step by step in turn; what each came to at its best rate."""
    field = [Contender(copy.deepcopy(start), name, options, rate, steps, seed) for name, options in methods.items() for rate in rates]
    for step in range(steps):
        rows = batch(data, label, step, seed)
        for each in field:
            each.step(rows)
    found: dict[str, Any] = {}
    for each in field:
        loss = each.measure(data)
        if each.name not in found or loss < found[each.name]["loss"]:
            speed = ROWS * LENGTH / statistics.median(each.times)
            found[each.name] = {"loss": loss, "rate": each.rate, "speed": speed, **each.bytes(batch(data, label, 0, seed)), "model": each.model}
    first = Contender(copy.deepcopy(start), "full", None, 1e-3, steps, seed).measure(data)
    print(f"\n{label}, {steps} steps of {ROWS * LENGTH} bytes, held-out loss {first:.4f} at the start")
    print(f"{'':16}{'loss':>8}{'to full':>9}{'rate':>8}{'trained':>10}{'weights kB':>12}{'state kB':>10}{'memory kB':>11}{'bytes/s':>9}")
    for name, row in found.items():
        row["memory"] = row["weights"] + row["state"] + row["gradients"] + row["kept"]
        row["to_full"] = row["loss"] - found["full"]["loss"]
        print(
            f"{name:16}{row['loss']:8.4f}{row['to_full']:+9.4f}{row['rate']:8.4f}{row['trained']:10,d}{row['weights'] / 1e3:12.0f}"
            f"{row['state'] / 1e3:10.0f}{row['memory'] / 1e3:11.0f}{row['speed']:9.0f}"
        )
    return found


def off_formula(model: Any, state: int) -> int:
    """By how many bytes SLTrain's weights, places and state of the blocks' matrices miss the paper's formula; each tensor's step count aside."""
    expected = 0
    for each in matrices(model):
        assert isinstance(each, SLTrainMatrix)
        expected += 12 * (each.rank * (each.outputs + each.inputs) + each.values.numel()) + 8 * each.values.numel()
    own = [t for each in matrices(model) for t in (*each.parameters(), *each.buffers())]
    inside = sum(t.numel() * t.element_size() for t in own)
    outside = sum(8 * p.numel() for n, p in model.named_parameters() if ".matrices." not in n)
    counts = 4 * sum(1 for _ in model.parameters())
    return inside + state - counts - outside - expected


def merged_apart(model: Any, data: numpy.ndarray) -> float:
    """The greatest difference merging makes to a logit, relative to the greatest logit."""
    rows = batch(data, "held_out", 0, 0)
    with torch.no_grad():
        before = model(rows).logits()
        after = merge(copy.deepcopy(model))(rows).logits()
    return float((after - before).abs().max() / before.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tune-steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps, tune_steps = (8, 4) if given.quick else (given.steps, given.tune_steps)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources, prose = text(sorted(library.glob("*.py"))), text([library / "pydoc_data/topics.py"])
    start = Decoder(256, given.seed, **SHAPE)
    before = compete("pre-training", start, pretraining(steps), (0.003,) if given.quick else (0.003, 0.01), steps, sources, given.seed)
    whole = before["full"]["model"]
    after = compete("fine-tuning", whole, TUNING, (0.003,) if given.quick else (0.001, 0.003, 0.01), tune_steps, prose, given.seed)
    apart = {name: merged_apart(row["model"], prose) for name, row in {**before, **after}.items() if matrices(row["model"])}
    off = off_formula(before["sltrain"]["model"], before["sltrain"]["state"])
    print(f"\nSLTrain's bytes off its paper's formula: {off}; merging moves a logit by at most {max(apart.values()):.1e} of the greatest")
    keys = ("loss", "to_full", "rate", "trained", "weights", "state", "memory", "speed")
    figures: dict[str, Any] = {
        "pretraining": {name: {key: round(row[key], 4) for key in keys} for name, row in before.items()},
        "tuning": {name: {key: round(row[key], 4) for key in keys} for name, row in after.items()},
        "sltrain_bytes_off": off,
        "merged_apart": max(apart.values()),
        "steps": [steps, tune_steps],
        "seed": given.seed,
        "threads": given.threads,
    }
    methods = {name: {"pre-training loss to full": f"{row['to_full']:+.4f}"} for name, row in before.items() if name != "full"}
    for name, row in after.items():
        if name in registry.names(KIND):
            methods.setdefault(name, {})["fine-tuning loss to full"] = f"{row['to_full']:+.4f}"
    holds = off == 0 and max(apart.values()) <= 1e-4
    finish("low_rank", figures, {"sltrain_bytes_off": 0, "merged_apart": 1e-4}, holds, given.quick, methods)


if __name__ == "__main__":
    main()
