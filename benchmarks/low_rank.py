"""Low-rank and sparse layers at equal tokens: pre-training from scratch, and fine-tuning on text of another kind.

Bytes of the standard library's sources, a small decoder, AdamW. All methods take their steps in turn on the same batches, so the times are
comparable on a busy machine; each is run at every rate of a small grid with the first seed, and at its best with the others. Pre-training
methods also train everything outside the blocks, fine-tuning ones nothing else, and begin from the fully pre-trained model. Memory is counted:
weights, places, gradients, optimizer state, and what one forward pass keeps for the backward pass.

    python benchmarks/low_rank.py [--quick] [--steps 150] [--tune-steps 60] [--threads 2] [--seeds 3]
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
from bessemer.run.compare_table import half_width
from bessemer.train import optimizers
from bessemer.train.engine import Engine

LENGTH, ROWS, HELD_OUT = 128, 8, 24
SHAPES = {width: {"depth": depth, "width": width, "head_size": 32, "length": LENGTH} for depth, width in ((2, 64), (3, 128))}
RATES = {"pre-training": (0.003, 0.01), "fine-tuning": (0.001, 0.003, 0.01)}
Rates = dict[str, tuple[float, ...]]
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


def compete(label: str, start: Any, methods: dict[str, Options | None], rates: Rates, steps: int, data: Any, seed: int) -> dict[str, Any]:
    """Every method at every one of its rates, step by step in turn; what each came to at its best."""
    field = [Contender(copy.deepcopy(start), name, options, rate, steps, seed) for name, options in methods.items() for rate in rates[name]]
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
    print(
        f"\n{label}, width {start.embed.weight.shape[1]}, seed {seed}, {steps} steps of {ROWS * LENGTH} bytes, held-out loss {first:.4f} at the start"
    )
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
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures: dict[str, Any] = {"steps": [given.steps, given.tune_steps], "seeds": given.seeds, "threads": given.threads}
    apart, off = [], 0
    for width in list(SHAPES)[: 1 if given.quick else None]:
        rows, worst, missed = compare(width, given)
        figures |= {f"{label}, width {width}": found for label, found in rows.items()}
        apart.append(worst)
        off = max(off, abs(missed))
    figures |= {"sltrain_bytes_off": off, "merged_apart": max(apart)}
    print(f"\nSLTrain's bytes off its paper's formula: {off}; merging moves a logit by at most {max(apart):.1e} of the greatest")
    methods: dict[str, dict[str, str]] = {}
    for label in RATES:
        for name, row in figures[f"{label}, width {width}"].items():
            if name in registry.names(KIND):
                methods.setdefault(name, {})[f"{label} loss to full"] = f"{row['to_full']:+.4f}"
    finish("low_rank", figures, {"sltrain_bytes_off": 0, "merged_apart": 1e-4}, off == 0 and max(apart) <= 1e-4, given.quick, methods)


def compare(width: int, given: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], float, int]:
    """Both competitions over all seeds: rows by label and method, how far merging moves a logit, and SLTrain's bytes off the formula."""
    steps, tune_steps, seeds = (8, 4, 1) if given.quick else (given.steps, given.tune_steps, given.seeds)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources, prose = text(sorted(library.glob("*.py"))), text([library / "pydoc_data/topics.py"])
    methods = {"pre-training": pretraining(steps), "fine-tuning": TUNING}
    rates: dict[str, Rates] = {label: dict.fromkeys(methods[label], RATES[label][:1] if given.quick else RATES[label]) for label in methods}
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in methods}
    apart, off = [0.0], 0
    for seed in range(seeds):
        start: Any = Decoder(256, seed, **SHAPES[width])
        for label, data, count in (("pre-training", sources, steps), ("fine-tuning", prose, tune_steps)):
            rows = compete(label, start, methods[label], rates[label], count, data, seed)
            start = rows["full"]["model"]
            rates[label] = {name: (row["rate"],) for name, row in rows.items()}
            apart += [merged_apart(row["model"], prose) for row in rows.values() if matrices(row["model"])]
            if "sltrain" in rows:
                off = max(off, abs(off_formula(rows["sltrain"]["model"], rows["sltrain"]["state"])))
            found[label].append({name: {key: value for key, value in row.items() if key != "model"} for name, row in rows.items()})
    return {label: {name: over_seeds([rows[name] for rows in found[label]]) for name in methods[label]} for label in found}, max(apart), off


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and half the 95% interval of the loss and of its difference to full training; sizes and the rate as with the first seed."""
    means = {key: statistics.fmean(row[key] for row in rows) for key in ("loss", "to_full", "speed")}
    spread = {f"{key}_interval": half_width([row[key] for row in rows]) for key in ("loss", "to_full")}
    kept = {key: rows[0][key] for key in ("rate", "trained", "weights", "state", "memory")}
    return {key: value if value is None else round(value, 4) for key, value in {**means, **spread, **kept}.items()}


if __name__ == "__main__":
    main()
