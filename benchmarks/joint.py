"""Joint training on the embedded scenes and text: each objective against its floor, tasks together against tasks alone, and the joint step's rate.

    python benchmarks/joint.py [--quick] [--steps 400] [--seeds 3] [--only floors,together,rate] [--objectives mae,clip]

With floors alone the results go to results/joint_floors.json.

Every contender is a decoder of depth 3 and width 96 with feed-forward parts of their own for patches, trained from scratch with Muon and AdamW; rows of
192 columns, pictures of 32 x 32 in patches of 8. Text is bytes of this machine's Python sources. Figures are held-out, means over seeds.

    floors    each alone, 8 rows a step (mae 4):
              simmim, mae, dmjd, m3i: linear probes on the trunk's mean state for the shapes' size and number, which straight lines can't
              tell well from pixels, against the same on raw pixels (and, beside it, on the untrained trunk)
              lejepa: effective rank against a quarter of the width, which a collapse would not reach, for it has no teacher
              clip, filip: zero-shot accuracy over chance, 1.5 times
              captioning: nats per token against those with another picture
              flow_matching, 12 times as long: energy distance of samples from held-out pictures, in the states of a trained clip, against
              that of a Gaussian of the pictures' mean and covariance
              erw, 4 times as long: flow matching's held-out loss when its first layers are a trained mae's, against flow matching from nothing
    together  text, mae, lejepa, clip and captioning in one run, against each alone for as many rows of its own: quality kept, in per
              cent; target 97 for each, and more than 100 for one. The joint run has twice the steps of half the rows for each task.
              Quality is, of text and captions, the probability of a right token (geometric mean); of mae and lejepa the probes'
              accuracy; of clip zero-shot accuracy
    rate      columns in a second of processor time of the joint step, against the mean of the single tasks' weighted by their columns; target 92 per cent
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from joint_texts import LENGTH, Bytes, Words
from kept import Kept
from results import finish

from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.data.example_loader import ExampleLoader
from bessemer.data.example_store import Examples, ExampleWriter
from bessemer.data.examples.scenes import scenes
from bessemer.evaluate.pictures import chosen
from bessemer.evaluate.subject import Subject
from bessemer.evaluate.tasks.linear_probe import linear_probe
from bessemer.evaluate.tasks.rank_me import rank_me
from bessemer.evaluate.tasks.zero_shot import zero_shot
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.train import optimizers
from bessemer.train.engine import Engine
from bessemer.train.source import Feed, Source

PATCHES = {"name": "patches", "size": 8}
MODEL = {"depth": 3, "width": 96, "heads": 6, "head_size": 16, "ffn": 256, "modalities": ["patches"]}
WEIGHTS = {"text": 2.0, "lejepa": 0.3, "clip": 0.7}
"""Of tasks trained together, else one: clip's and lejepa's gradients are several times as long as text's."""
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "text": ({"name": "next_token"}, 8),
    "mae": ({"name": "mae"}, 4),
    "lejepa": ({"name": "lejepa", "group": 8, "least": 0.8}, 8),
    "clip": ({"name": "clip", "group": 8}, 8),
    "captioning": ({"name": "captioning"}, 4),
}
"""Each task's objective and its rows of a step."""
PROBED = ["size", "number"]
"""What is probed for."""

LONGER = {"flow_matching": 12, "erw": 4}
"""How many times the others' steps: what makes pictures is held against pictures, not against another objective."""


class Bench:
    """The data, and what is trained and measured on it."""

    def __init__(self, count: int, quick: bool, kept: Kept) -> None:
        self.quick, self.judging, self.kept = quick, None, kept
        self.words, self.text = Words(), Bytes()
        writer = ExampleWriter(Path(tempfile.mkdtemp(prefix="bessemer-joint-")), 32, 0)
        list(writer.add_all(scenes(count=count)))
        writer.close(0.15)
        self.store = Examples(writer.folder, {"kind": "examples", "hash": "", "info": {}})
        for text in self.store.texts:
            self.words.encode(text)

    def model(self, tasks: list[str], seed: int, begun: Any = None) -> tuple[Any, dict[str, Any]]:
        model = begun or Decoder(self.words.vocabulary_size, seed, **MODEL)
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

    def train(self, tasks: list[str], steps: int, seed: int, share: float = 1.0, begun: Any = None) -> tuple[Any, dict[str, Any]]:
        """The model and its objectives after a whole training; see Training."""
        training = Training(self, tasks, steps, seed, share, begun)
        for _ in range(steps):
            training.step()
        training.source.close()
        return training.model.eval(), training.made

    def judge(self) -> Any:
        """A trained clip, by whose trunk pictures are compared."""
        if self.judging is None:
            self.judging = self.train(["clip"], 2 if self.quick else 400, 77)[0]
        return self.judging

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
        if name in ("mae", "lejepa"):
            return statistics.mean(self.probes(model).values())
        if name == "clip":
            return statistics.mean(float(value) for value in zero_shot(self.subject(model), task=name).values())
        return math.exp(-self.loss(model, name, objective))

    def probes(self, model: Any, raw: bool = False) -> dict[str, float]:
        """Accuracy of linear probes on the trunk, and on raw pixels as LABEL_raw."""
        return {name: float(value) for name, value in linear_probe(self.subject(model), labels=PROBED, raw=raw).items()}


class Training:
    """A model on its way, step by step.

    Args:
        share: of each task's usual rows in a step.
        begun: the model to train instead of a new one.
    """

    def __init__(self, bench: Bench, tasks: list[str], steps: int, seed: int, share: float = 1.0, begun: Any = None) -> None:
        self.model, self.made = bench.model(tasks, seed, begun)
        self.model.train()
        feeds = {
            name: Feed(bench.loader(name, made, seed), float(TASKS[name][1]), made.unit, prepare=lambda b, o=made: o.prepare(b, seed))
            for name, made in self.made.items()
        }
        self.rows, self.source = round(share * sum(TASKS[name][1] for name in tasks)), Source(feeds, 8)
        weights = WEIGHTS if len(tasks) > 1 else {}
        self.engine = Engine(self.model, {name: (made, weights.get(name, 1.0)) for name, made in self.made.items()}, torch.float32)
        entries = [{"role": "matrix", "name": "muon", "lr": 0.02}, {"name": "adamw", "lr": 3e-3}]
        self.moving = optimizers.build(self.model, [choose("optim", entry, optimizers.TAGS) for entry in entries], parameter_roles(self.model))
        self.schedule = choose("schedules", {"name": "wsd", "warmup": 0.05, "decay": 0.3})
        self.progress = Progress(steps=steps)

    def step(self) -> int:
        """One step; how many columns it had."""
        self.moving.set_factor(self.schedule(self.progress))
        columns = self.engine.forward_backward(self.source.next(self.progress, self.rows)).tokens
        self.engine.clip(1.0)
        self.moving.step()
        self.moving.zero_grad()
        self.progress.step += 1
        return columns


def floors(bench: Bench, steps: int, seeds: int, only: list[str]) -> dict[str, Any]:
    """Each objective of pictures alone against its floor."""
    found: dict[str, Any] = {}
    probe = bench.kept("untrained", lambda: bench.probes(bench.model(["mae"], 0)[0], raw=True))
    found["raw_pixels"] = round(statistics.mean(probe[f"{name}_raw"] for name in PROBED), 4)
    found["untrained"] = round(statistics.mean(probe[name] for name in PROBED), 4)
    print(found, {name: round(value, 4) for name, value in probe.items()}, flush=True)
    extra = {"simmim": {}, "dmjd": {}, "m3i": {"group": 8}, "filip": {"group": 8}, "flow_matching": {}}
    TASKS.update({name: ({"name": name, **options}, 8) for name, options in extra.items()})
    for name in only or ["simmim", "mae", "dmjd", "lejepa", "m3i", "clip", "filip", "captioning", "flow_matching", "erw"]:
        figures: dict[str, list[float]] = {}
        for seed in range(seeds):
            measure = partial(warmed, bench, steps, seed) if name == "erw" else partial(alone, bench, name, steps, seed)
            for key, value in bench.kept(f"{name} {seed}", measure).items():
                figures.setdefault(key, []).append(value)
        found[name] = {key: round(statistics.mean(values), 4) for key, values in figures.items()}
        print(f"{name:14s} {found[name]}", flush=True)
    found["beaten"] = {name: beaten(name, found[name], found["raw_pixels"]) for name in found if isinstance(found[name], dict)}
    return found


def beaten(name: str, figures: dict[str, float], raw: float) -> bool:
    """Whether an objective's figures are better than its floor."""
    if name == "lejepa":
        return figures["rank"] > MODEL["width"] / 4
    if "probes" in figures:
        return figures["probes"] > raw
    if "times_chance" in figures:
        return figures["times_chance"] > 1.5
    if "nats" in figures:
        return figures["nats"] < figures["nats_with_another_picture"]
    if "warmed" in figures:
        return figures["warmed"] < figures["from_nothing"]
    return figures["energy_distance"] < figures["energy_distance_gaussian"]


def alone(bench: Bench, name: str, steps: int, seed: int) -> dict[str, float]:
    """One objective's figures after a training of its own."""
    model, made = bench.train([name], steps * LONGER.get(name, 1), seed)
    return floor_of(bench, model, name, made[name])


def warmed(bench: Bench, steps: int, seed: int) -> dict[str, float]:
    """Held-out loss of flow matching whose first two layers of three, embedding and adapter are those of a mae, and of flow matching from nothing."""
    steps *= LONGER["erw"]
    first = bench.train(["mae"], steps, seed)[0]
    begun, _ = bench.model(["flow_matching"], seed + 50)
    held = first.state_dict()
    taken = {name: value for name, value in held.items() if name.startswith(("embed.", "adapters.", "blocks.0.", "blocks.1."))}
    begun.load_state_dict(begun.state_dict() | taken)
    found = {}
    for name, start in (("warmed", begun), ("from_nothing", None)):
        model, made = bench.train(["flow_matching"], steps, seed + 50, begun=start)
        found[name] = bench.loss(model, "flow_matching", made["flow_matching"])
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
        return flow(bench, model, objective, bench.judge())
    probes = bench.probes(model)
    return {"probes": statistics.mean(probes.values()), **probes, "rank": float(rank_me(bench.subject(model))["rank"])}


def flow(bench: Bench, model: Any, objective: Any, judge: Any, count: int = 192, steps: int = 40) -> dict[str, float]:
    """Energy distances from held-out pictures, in the mean states of a judge's trunk, each scaled to the deviation it has over real pictures."""
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
    store, adapter = bench.store, objective.adapter
    real, seen = (
        torch.from_numpy(store.take("picture", chosen(store, part, "picture", most, 0))) for part, most in (("held_out", count), ("train", 4000))
    )
    flat = adapter.cut(seen).flatten(1)
    mean, spread = flat.mean(0), torch.linalg.eigh(torch.cov(flat.T))
    noise = torch.randn(count, flat.shape[1], generator=torch.Generator().manual_seed(1))
    gaussian = mean + (noise * spread.eigenvalues.clamp(min=0).sqrt()) @ spread.eigenvectors.T
    pictures = {"": x.flatten(0, 1)[:count], "_gaussian": gaussian.view(count, adapter.pieces, -1), "_real": adapter.cut(seen[:count])}
    truth = judged(judge, adapter.cut(real))
    scale = truth.std(0) + 1e-6
    return {f"energy_distance{name}": energy(judged(judge, each.clamp(-1, 1)) / scale, truth / scale) for name, each in pictures.items()}


def judged(judge: Any, pieces: torch.Tensor) -> torch.Tensor:
    """The mean state of a trunk over the patches of each picture: [pictures, width]."""
    columns = torch.arange(pieces.shape[1]).expand(pieces.shape[:2])
    streams = {"patches": pieces, "patches_place": columns, "patches_index": columns}
    tokens = torch.zeros_like(columns)
    with torch.no_grad():
        return judge(Batch(tokens, columns, torch.ones_like(columns), streams=streams, open=tokens == 0)).hidden.mean(1)


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
        joint = bench.kept(f"joint {seed}", partial(qualities, bench, names, 2 * steps, seed, 0.5))
        for name in names:
            single = bench.kept(f"alone {name} {seed}", partial(qualities, bench, [name], steps, seed))
            kept[name].append(100 * joint[name] / single[name])
            print(f"seed {seed} {name:12s} {joint[name]:.4f} together, {single[name]:.4f} alone, {kept[name][-1]:6.1f}%", flush=True)
    return {name: round(statistics.mean(values), 2) for name, values in kept.items()}


def qualities(bench: Bench, names: list[str], steps: int, seed: int, share: float = 1.0) -> dict[str, float]:
    """What each task is judged by after a training on all of them."""
    model, made = bench.train(names, steps, seed, share)
    return {name: bench.quality(model, name, made[name]) for name in names}


def rate(bench: Bench, rounds: int) -> dict[str, Any]:
    """The joint step's columns in a second of processor time over the single tasks', weighted by their columns; steps taken in turns, medians."""
    names = ["text", "mae", "lejepa", "clip", "captioning"]
    contenders = {"joint": Training(bench, names, rounds + 3, 0), **{name: Training(bench, [name], rounds + 3, 0) for name in names}}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 3):
        for name, each in contenders.items():
            began = time.process_time()
            columns = each.step()
            if turn >= 3:
                found[name].append(columns / (time.process_time() - began))
    for each in contenders.values():
        each.source.close()
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = {name: TASKS[name][1] for name in names}
    whole = sum(rows.values())
    mean = sum(rows[name] * middle[name] for name in names) / whole
    apart = whole / sum(rows[name] / middle[name] for name in names)
    return {
        "joint": round(middle["joint"]),
        "single": {name: round(middle[name]) for name in names},
        "per_cent": round(100 * middle["joint"] / mean, 1),
        "per_cent_of_one_after_the_other": round(100 * middle["joint"] / apart, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--only", default="floors,together,rate")
    parser.add_argument("--objectives", default="")
    parser.add_argument("--keep", type=Path, help="a folder for finished figures, from which a stopped run goes on")
    given = parser.parse_args()
    steps, seeds = (2, 1) if given.quick else (given.steps, given.seeds)
    kept = Kept(given.keep, [given.steps, given.scenes, given.quick])
    bench, parts, figures = Bench(200 if given.quick else given.scenes, given.quick, kept), given.only.split(","), {}
    if "rate" in parts:
        figures["rate"] = kept("rate", lambda: rate(bench, 2 if given.quick else 30))
        print(figures["rate"], flush=True)
    if "floors" in parts:
        figures["floors"] = floors(bench, steps, seeds, [name for name in given.objectives.split(",") if name])
    if "together" in parts:
        figures["together"] = together(bench, steps, seeds)
    ratios = list(figures.get("together", {"": 101}).values())
    holds = figures.get("rate", {}).get("per_cent", 100) >= 92 and min(ratios) >= 97 and max(ratios) > 100
    holds = holds and all(figures.get("floors", {}).get("beaten", {"": True}).values())
    figures |= {"steps": steps, "seeds": seeds, "threads": torch.get_num_threads()}
    finish("joint_floors" if parts == ["floors"] else "joint", figures, {"rate.per_cent": 92, "together": 97, "floors": "beaten"}, holds, given.quick)


if __name__ == "__main__":
    main()
