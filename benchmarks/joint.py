"""Joint training on the embedded scenes and text: each objective against its floor, tasks together against tasks alone, and the joint step's rate.

    python benchmarks/joint.py [--quick] [--steps 400] [--seeds 3] [--only floors,together,rate]

Every contender is a decoder of depth 3 and width 64, trained from scratch with Muon and AdamW; rows of 192 columns, pictures of 32 x 32 in
patches of 8. Text is bytes of this machine's Python sources. Figures are held-out, means over seeds.

    floors    alone, `steps` steps: a linear probe for the shape on the trunk's mean state, against one on the raw pixels and on the
              untrained trunk (simmim, mae, dmjd, lejepa, m3i); zero-shot accuracy over chance (clip, filip); nats per caption token
              against those without the picture (captioning); energy distance of samples from held-out pictures against that of a
              Gaussian of the pictures' mean and covariance (flow_matching)
    together  text, mae, lejepa, clip and captioning in one run, against each alone for as many rows of its own: quality kept, in per
              cent; target 97 for each
    rate      columns a second of the joint step, against the mean of the single tasks' weighted by their columns; target 92 per cent
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import finish

from bessemer.core import rng
from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.data.example_loader import ExampleLoader
from bessemer.data.example_store import Examples, ExampleWriter
from bessemer.data.examples.scenes import scenes
from bessemer.evaluate.pictures import chosen
from bessemer.evaluate.subject import Subject
from bessemer.evaluate.tasks.linear_probe import linear_probe
from bessemer.evaluate.tasks.zero_shot import zero_shot
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.train import optimizers
from bessemer.train.engine import Engine
from bessemer.train.source import Feed, Source

LENGTH, PATCHES = 192, {"name": "patches", "size": 8}
MODEL = {"depth": 3, "width": 64, "heads": 4, "head_size": 16, "ffn": 192}
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "text": ({"name": "next_token"}, 8),
    "mae": ({"name": "mae"}, 4),
    "lejepa": ({"name": "lejepa", "group": 8}, 8),
    "clip": ({"name": "clip", "group": 8}, 8),
    "captioning": ({"name": "captioning"}, 4),
}
"""Each task's objective and its rows of a step."""


class Words:
    """Bytes for text, and an id for each word of the captions."""

    begin, end, pad, vocabulary_size = 0, 1, 2, 320
    special_ids: dict[str, int] = {}

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, 256 + len(self.ids)) for word in text.split()]


class Bytes:
    """Rows of the standard library's sources; the last twentieth is held out."""

    def __init__(self, held_out: bool = False) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        whole = np.frombuffer(b"".join(file.read_bytes() for file in files)[:6_000_000], dtype=np.uint8)
        edge = len(whole) * 19 // 20
        self.data, self.seed = (whole[edge:] if held_out else whole[:edge]), int(held_out)

    def batch(self, start: int, rows: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        sample = np.arange(start, start + rows)
        first = (rng.uniforms(self.seed, sample, 1)[:, 0] * (len(self.data) - LENGTH - 1)).astype(np.int64)
        found = torch.from_numpy(np.stack([self.data[at : at + LENGTH + 1] for at in first]).astype(np.int64))
        columns = torch.arange(LENGTH).expand(rows, LENGTH)
        weights = {"next_token": torch.ones(rows, LENGTH)}
        return Batch(found[:, :-1], columns, torch.ones_like(columns), found[:, 1:], weights, samples=torch.from_numpy(sample), task="text")


class Bench:
    """The data, and what is trained and measured on it."""

    def __init__(self, count: int, quick: bool) -> None:
        self.quick = quick
        self.words, self.text = Words(), Bytes()
        writer = ExampleWriter(Path(tempfile.mkdtemp(prefix="bessemer-joint-")), 32, 0)
        list(writer.add_all(scenes(count=count)))
        writer.close(0.15)
        self.store = Examples(writer.folder, {"kind": "examples", "hash": "", "info": {}})
        for text in self.store.texts:
            self.words.encode(text)

    def model(self, tasks: list[str], seed: int) -> tuple[Any, dict[str, Any]]:
        model = Decoder(self.words.vocabulary_size, seed, **MODEL)
        made = {}
        for name in tasks:
            given, adapter = choose("objectives", TASKS[name][0]), None if name == "text" else choose("models/adapters", PATCHES)
            made[name] = attach(model, name, given, adapter, seed)
        return model, made

    def loader(self, name: str, objective: Any, seed: int, part: str = "train") -> Any:
        if name == "text":
            return self.text if part == "train" else Bytes(held_out=True)
        per_row = LENGTH // objective.columns
        return ExampleLoader(
            self.store, self.words, modality="picture", per_row=per_row, length=LENGTH, words=objective.words, seed=seed, part=part, task=name
        )  # type: ignore[arg-type]

    def train(self, tasks: list[str], steps: int, seed: int) -> tuple[Any, dict[str, Any], float]:
        """The model, its objectives, and columns a second over the second half."""
        model, made = self.model(tasks, seed)
        feeds = {
            name: Feed(self.loader(name, objective, seed), float(TASKS[name][1]), objective.unit, prepare=lambda b, o=objective: o.prepare(b, seed))
            for name, objective in made.items()
        }
        rows = sum(TASKS[name][1] for name in tasks)
        source = Source(feeds, 8)
        engine = Engine(model, {name: (objective, 1.0) for name, objective in made.items()}, torch.float32)
        entries = [{"role": "matrix", "name": "muon", "lr": 0.02}, {"name": "adamw", "lr": 3e-3}]
        moving = optimizers.build(model, [choose("optim", entry, optimizers.TAGS) for entry in entries], parameter_roles(model))
        schedule = choose("schedules", {"name": "wsd", "warmup": 0.05, "decay": 0.3})
        columns, began = 0, time.perf_counter()
        for step in range(steps):
            if step == steps // 2:
                columns, began = 0, time.perf_counter()
            progress = Progress(step=step, steps=steps)
            moving.set_factor(schedule(progress))
            columns += engine.forward_backward(source.next(progress, rows)).tokens
            engine.clip(1.0)
            moving.step()
            moving.zero_grad()
        rate = columns / (time.perf_counter() - began)
        source.close()
        return model.eval(), made, rate

    def subject(self, model: Any) -> Subject:
        return Subject(model, self.words, smoke=self.quick, examples=[self.store])  # type: ignore[arg-type]

    def loss(self, model: Any, name: str, objective: Any, rows: int = 48) -> float:
        """The first term of an objective over held-out rows, divided by its count."""
        batch = objective.prepare(self.loader(name, objective, 0, "held_out").batch(0, rows), 99)
        with torch.no_grad():
            batch = objective.before(batch)
            term = next(iter(objective(model(batch), batch)))[1]
        return float(term.sum) / float(batch.count(term.over))

    def quality(self, model: Any, name: str, objective: Any) -> float:
        """What a task is judged by, higher is better."""
        if name == "lejepa":
            return float(linear_probe(self.subject(model), labels=["shape"])["shape"])
        if name == "clip":
            return statistics.mean(float(value) for value in zero_shot(self.subject(model), task=name).values())
        return 1.0 / self.loss(model, name, objective)


def floors(bench: Bench, steps: int, seeds: int, only: list[str]) -> dict[str, Any]:
    """Each objective of pictures alone against its floor."""
    found: dict[str, Any] = {}
    untrained = bench.model(["mae"], 0)[0]
    probe = linear_probe(bench.subject(untrained), labels=["shape"], raw=True)
    found["shape_raw_pixels"], found["shape_untrained"] = (round(float(probe[key]), 4) for key in ("shape_raw", "shape"))
    extra = {"simmim": {}, "dmjd": {}, "m3i": {"group": 8}, "filip": {"group": 8}, "flow_matching": {}}
    TASKS.update({name: ({"name": name, **options}, 8) for name, options in extra.items()})
    for name in only or ["simmim", "mae", "dmjd", "lejepa", "m3i", "clip", "filip", "captioning", "flow_matching"]:
        figures: dict[str, list[float]] = {}
        for seed in range(seeds):
            model, made, _ = bench.train([name], steps, seed)
            for key, value in floor_of(bench, model, name, made[name]).items():
                figures.setdefault(key, []).append(value)
        found[name] = {key: round(statistics.mean(values), 4) for key, values in figures.items()}
        print(f"{name:14s} {found[name]}", flush=True)
    return found


def floor_of(bench: Bench, model: Any, name: str, objective: Any) -> dict[str, float]:
    """One objective's figures."""
    if name in ("clip", "filip"):
        found = zero_shot(bench.subject(model), task=name)
        chance = {"shape": 4, "colour": 6, "size": 2, "number": 3, "place": 4}
        return {"times_chance": statistics.mean(float(found[key]) * of for key, of in chance.items()), **{k: float(v) for k, v in found.items()}}
    if name == "captioning":
        whole = bench.loss(model, name, objective)
        batch = objective.prepare(bench.loader(name, objective, 0, "held_out").batch(0, 48), 99)
        batch.streams["patches"] = batch.streams["patches"].roll(objective.adapter.pieces, 1)  # another picture of the row
        with torch.no_grad():
            other = float(objective(model(batch), batch)[name].sum) / float(batch.count(name))
        return {"nats": whole, "nats_with_another_picture": other}
    if name == "flow_matching":
        return flow(bench, model, objective)
    return {"shape": float(linear_probe(bench.subject(model), labels=["shape"])["shape"])}


def flow(bench: Bench, model: Any, objective: Any, count: int = 192, steps: int = 40) -> dict[str, float]:
    """Energy distances from held-out pictures, in the space of patches' values."""
    per_row = LENGTH // objective.columns
    rows = -(-count // per_row)
    draw = torch.arange(rows * per_row).view(rows, per_row)
    tokens = torch.full((rows, LENGTH), 2)
    raw = Batch(tokens, torch.zeros_like(tokens), streams={"draw": draw}, samples=torch.arange(rows))
    x = torch.randn(rows, per_row, objective.adapter.pieces, objective.adapter.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            batch = objective.before(objective.rows(raw, x, torch.full(draw.shape, step / steps), None))
            x = x + objective.velocity(model(batch), batch) / steps
    made = x.flatten(0, 1).flatten(1)[:count]
    store = bench.store
    real, seen = (
        objective.adapter.cut(torch.from_numpy(store.take("picture", chosen(store, part, "picture", most, 0)))).flatten(1)
        for part, most in (("held_out", count), ("train", 4000))
    )
    mean, spread = seen.mean(0), torch.linalg.eigh(torch.cov(seen.T))
    noise = torch.randn(count, seen.shape[1], generator=torch.Generator().manual_seed(1))
    gaussian = mean + (noise * spread.eigenvalues.clamp(min=0).sqrt()) @ spread.eigenvectors.T
    return {
        "energy_distance": energy(made, real),
        "energy_distance_gaussian": energy(gaussian, real),
        "energy_distance_real": energy(seen[:count], real),
    }


def energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| (Szekely and Rizzo 2013), pairs of different samples only."""

    def within(x: torch.Tensor) -> float:
        return float(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)))

    return 2 * float(torch.cdist(a, b).mean()) - within(a) - within(b)


def together(bench: Bench, steps: int, seeds: int) -> dict[str, Any]:
    """Quality in the joint run over quality alone, in per cent, by task."""
    names = ["text", "mae", "lejepa", "clip", "captioning"]
    kept: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        model, made, _ = bench.train(names, steps, seed)
        for name in names:
            alone, single, _ = bench.train([name], steps, seed)
            ratio = 100 * bench.quality(model, name, made[name]) / bench.quality(alone, name, single[name])
            kept[name].append(ratio)
            print(f"seed {seed} {name:12s} {ratio:6.1f}%", flush=True)
    return {name: round(statistics.mean(values), 2) for name, values in kept.items()}


def rate(bench: Bench, steps: int) -> dict[str, Any]:
    """The joint step's columns a second over the single tasks', weighted by their columns."""
    names = ["text", "mae", "lejepa", "clip", "captioning"]
    joint = bench.train(names, steps, 0)[2]
    single = {name: bench.train([name], steps, 0)[2] for name in names}
    rows = {name: TASKS[name][1] for name in names}
    whole = sum(rows.values())
    mean = sum(rows[name] * single[name] for name in names) / whole
    apart = whole / sum(rows[name] / single[name] for name in names)
    return {
        "joint": round(joint),
        "single": {name: round(value) for name, value in single.items()},
        "per_cent": round(100 * joint / mean, 1),
        "per_cent_of_one_after_the_other": round(100 * joint / apart, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--only", default="floors,together,rate")
    parser.add_argument("--objectives", default="")
    given = parser.parse_args()
    steps, seeds = (2, 1) if given.quick else (given.steps, given.seeds)
    bench, parts, figures = Bench(200 if given.quick else given.scenes, given.quick), given.only.split(","), {}
    if "rate" in parts:
        figures["rate"] = rate(bench, 2 if given.quick else min(steps, 60))
        print(figures["rate"], flush=True)
    if "floors" in parts:
        figures["floors"] = floors(bench, steps, seeds, [name for name in given.objectives.split(",") if name])
    if "together" in parts:
        figures["together"] = together(bench, steps, seeds)
    holds = figures.get("rate", {}).get("per_cent", 100) >= 92 and min(figures.get("together", {"": 100}).values()) >= 97
    figures |= {"steps": steps, "seeds": seeds, "threads": torch.get_num_threads()}
    finish("joint", figures, {"rate.per_cent": 92, "together": 97}, holds, given.quick)


if __name__ == "__main__":
    main()
