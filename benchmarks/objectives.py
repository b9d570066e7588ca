"""Each text objective against a floor, on the embedded data: what one learns with it that one doesn't learn without.

    python benchmarks/objectives.py [--quick] [--steps 600] [--seeds 1] [--only meap,ul2]

Every contender is a decoder of depth 3 and width 64 trained from scratch by the train stage on the same store with the same optimizers, rows
and schedule: text of this machine's Python (code, docstrings) and sums, or, byte by byte, documents in which a key or a copy has to be found. "At equal compute" counts
floating point operations of the forward and backward passes (heads and generators included); elsewhere the steps are equal. Means over seeds.

    meap          finds the value of a key among eight in a document: right answers, against next_token (a guess is right once in ten)
    ul2           nats of 9 hidden letters that stand again to their right, against next_token, which knows the left side only
    masked        nats of single hidden tokens, against the unigram entropy
    ahead         nats of the token after the next, against the unigram entropy
    electra       lexical classes of Python tokens after tuning the whole model on few labels, against masked_language at equal compute
    diffusion     the bound on nats per token, against the unigram entropy; the 4 hidden tokens, against next_token from the left
    positions     tokens of shuffled windows of 4 put in their places, against chance
    interleaved   nats of the text after a spoken span, against the same model with the units of another span
    distill       held-out nats per token with 16 stored logits of a teacher of width 128 for seven tenths of the loss, against next_token without
    self_distill  held-out nats per token of a small domain on which a model of the others is trained further, near the one so trained before,
                  against that one
    meco          held-out nats per token after the cooldown, against next_token without metadata
    decomposition held-out nats per token, documents in powers of two with the length curriculum, against best fit
    mixing        mean held-out nats over domains with aioli and loss_driven, against the better of fixed equal and proportional shares
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import Kept
from objective_bench import LARGE, LENGTH, MODEL, ROWS, WINDOW, Bench
from objective_classes import tuned
from objective_spans import as_blank, as_masked, from_the_left, hidden_nats
from results import finish
from torch.nn import functional as F

import bessemer
from bessemer.core.registry import choose
from bessemer.data.loader import Loader
from bessemer.data.special import MASK, SPEECH, TEXT
from bessemer.evaluate.held_out import document_sums
from bessemer.models.attach import attach, objective_of
from bessemer.models.families.decoder import Decoder
from bessemer.models.layers.linear import Linear


def nats(bench: Bench, model: Any, domain: str | None = None, name: str = "text") -> float:
    """Held-out nats per token."""
    sums = document_sums(model, bench.tokens(name), length=LENGTH, rows=ROWS, domain=domain, limit=4000 if bench.quick else 30_000)
    return float(sums.bits.sum() / sums.tokens.sum()) * math.log(2)


def answers(bench: Bench, model: Any) -> float:
    """The part of held-out key documents whose last value, their last token, is the likeliest."""
    tokens = bench.tokens("keys")
    right, documents = [], tokens.documents("held_out")[: 40 if bench.quick else 300]
    for document in documents.tolist():
        ids = tokens.read(document)[:-1]
        read = torch.from_numpy(np.concatenate([[tokens.begin], ids[:-1]]))[None]
        with torch.no_grad():
            right.append(int(model(read)[0, -1].argmax()) == int(ids[-1]))
    return float(np.mean(right))


def meap(bench: Bench, seed: int) -> dict[str, float]:
    found = {}
    for name in ("next_token", "meap"):
        model = bench.train({"objective": name}, seed, name="keys")
        found[name] = answers(bench, model)
    return found | {"floor": found["next_token"]}


def ul2(bench: Bench, seed: int) -> dict[str, float]:
    plain, mixed = (bench.train({"objective": each}, seed, name="copies", steps=2 * bench.steps) for each in ("next_token", "ul2"))
    objective = choose("objectives", "ul2")()
    objective.read(bench.tokenizer("copies"))
    found = {"ul2": hidden_nats(bench, mixed, as_blank(objective), "copies"), "floor": hidden_nats(bench, plain, from_the_left, "copies")}
    return found | {"letters at random": math.log(26)}


def unigrams(bench: Bench) -> float:
    """Nats of a held-out token that is guessed by its frequency alone."""
    tokens = bench.tokens()
    train, held = (np.concatenate([tokens.read(document) for document in tokens.documents(part).tolist()]) for part in ("train", "held_out"))
    odds = (np.bincount(train, minlength=tokens.vocabulary) + 0.1) / (len(train) + 0.1 * tokens.vocabulary)
    return float(-np.log(odds[held]).mean())


def held_out_loss(bench: Bench, model: Any, objective: Any, term: str, over: str, again: int = 4) -> float:
    """A term of an objective over held-out rows, each prepared so many times, divided by its count."""
    loader, total, count = Loader(bench.tokens(), length=LENGTH, mix=None, split="held_out", seed=1), 0.0, 0.0
    for start in range(0, ROWS * (2 if bench.quick else 16), ROWS):
        for seed in range(1 if bench.quick else again):
            ready = objective.prepare(loader.batch(start, ROWS), seed)
            with torch.no_grad():
                total += float(objective(model(ready), ready)[term].sum)
            count += float(ready.count(over))
    return total / count


def masked(bench: Bench, seed: int) -> dict[str, float]:
    model = bench.train({"objective": "masked_language"}, seed)
    objective = objective_of(model, "text")
    objective.read(bench.tokenizer())
    return {"masked_language": held_out_loss(bench, model, objective, "masked_language", "masked_language"), "floor": unigrams(bench)}


def ahead(bench: Bench, seed: int) -> dict[str, float]:
    model, plain = bench.train({"objective": "multi_token"}, seed, model=MODEL | {"ahead": 1}), bench.train({}, seed)
    found = {"ahead": held_out_loss(bench, model, objective_of(model, "text"), "ahead_1", "next_token", again=1), "floor": unigrams(bench)}
    return found | {"next": nats(bench, model), "next without": nats(bench, plain)}


def diffusion(bench: Bench, seed: int) -> dict[str, float]:
    tokenizer = bench.tokenizer()
    plain, model = bench.train({}, seed), bench.train({"objective": "masked_diffusion"}, seed)
    objective = objective_of(model, "text")
    objective.read(tokenizer)
    found = {"bound": held_out_loss(bench, model, objective, "masked_diffusion", "masked_diffusion"), "floor": unigrams(bench)}
    found["next_token"] = nats(bench, plain)
    mask = tokenizer.special_ids[MASK]
    return found | {"hidden": hidden_nats(bench, model, as_masked(mask)), "hidden next_token": hidden_nats(bench, plain, from_the_left)}


def flops(vocabulary: int, objective: str) -> float:
    """Forward and backward operations of one token through all matrices and the attention, the generator's too; the trunk's token head only if it is used."""
    options = {key: value for key, value in MODEL.items() if key != "name"}
    model: Any = Decoder(vocabulary, length=LENGTH, **options)
    attach(model, "text", choose("objectives", objective))
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    attention = sum(12.0 * len(each.blocks) * each.options["width"] * LENGTH for each in model.modules() if isinstance(each, Decoder))
    return 6.0 * (weights - (model.head.weight.numel() if objective == "electra" else 0)) + attention


def electra(bench: Bench, seed: int) -> dict[str, float]:
    vocabulary = bench.tokens().vocabulary
    ratio = flops(vocabulary, "electra") / flops(vocabulary, "masked_language")
    detected = bench.train({"objective": "electra"}, seed)
    masked = bench.train({"objective": "masked_language"}, seed, steps=max(1, round(bench.steps * ratio)))
    untrained: Any = Decoder(vocabulary, seed, length=LENGTH, **{key: value for key, value in MODEL.items() if key != "name"})
    contenders = {"electra": detected, "masked_language": masked, "untrained": untrained.eval()}
    found = {name: tuned(bench, model, seed) for name, model in contenders.items()}
    return found | {"floor": found["masked_language"], "compute of a step over masked language's": ratio}


def positions(bench: Bench, seed: int) -> dict[str, float]:
    model = bench.train({"objective": {"name": "position_prediction", "window": WINDOW}}, seed)
    objective, right, count = objective_of(model, "text"), 0.0, 0.0
    loader = Loader(bench.tokens(), length=LENGTH, mix=None, split="held_out", seed=1)
    for start in range(0, ROWS * (2 if bench.quick else 16), ROWS):
        ready = objective.prepare(loader.batch(start, ROWS), 0)
        with torch.no_grad():
            right += float(objective(model(ready), ready)["placed"].sum)
        count += float(ready.count("position"))
    return {"position_prediction": right / count, "floor": 1 / WINDOW}


def interleaved(bench: Bench, seed: int) -> dict[str, float]:
    model, tokenizer = bench.train({"objective": "interleaved"}, seed), bench.tokenizer()
    objective = objective_of(model, "text")
    objective.read(tokenizer)
    loader, totals, count = Loader(bench.tokens(), length=LENGTH, mix=None, split="held_out", seed=1), {"true": 0.0, "others": 0.0}, 0
    speech, turn = tokenizer.special_ids[SPEECH], tokenizer.special_ids[TEXT]
    units = torch.tensor([token for name, token in tokenizer.special_ids.items() if "unit_" in name])
    for start in range(0, ROWS * (2 if bench.quick else 16), ROWS):
        ready = objective.prepare(loader.batch(start, ROWS), 0)
        after = (ready.tokens == turn) & (ready.weights["next_token"] > 0) & (ready.targets != speech)
        said = torch.isin(ready.tokens, units)
        other = ready.tokens.clone()
        other[said] = ready.tokens[said][torch.randperm(int(said.sum()), generator=torch.Generator().manual_seed(start))]
        for name, tokens in (("true", ready.tokens), ("others", other)):
            with torch.no_grad():
                logits = model(replace(ready, tokens=tokens)).logits()[after]
            totals[name] += float(F.cross_entropy(logits, ready.targets[after], reduction="sum"))
        count += int(after.sum())
    return {"interleaved": totals["true"] / count, "floor": totals["others"] / count}


def distill(bench: Bench, seed: int) -> dict[str, float]:
    teacher = bench.train({}, seed + 100, model=MODEL | LARGE)
    store = {"do": "store_logits", "name": "store_logits", "inputs": {"tokens": str(bench.store("text") / "tokenize")}, "keep": 16, "rows": ROWS}
    store["inputs"] |= {"model": str(teacher.folder)}
    out = Path(tempfile.mkdtemp(dir=bench.folder))
    bessemer.run({"name": "logits", "stage": [store]}, out=out, quiet=True)
    even, together = (
        bench.train({"objective": {"name": "sparse_distill", "rest": rest, "hard": 0.3}}, seed, logits=out / "store_logits")
        for rest in ("even", "together")
    )
    plain = bench.train({}, seed)
    found = {"sparse_distill": nats(bench, together), "rest evenly": nats(bench, even)}
    return found | {"floor": nats(bench, plain), "teacher": nats(bench, teacher)}


def self_distill(bench: Bench, seed: int) -> dict[str, float]:
    first = bench.train({}, seed)
    further = partial(bench.train, seed=seed, name="few", start=first.folder)
    teacher = further({})
    near = {"name": "self_distill", "teacher": str(teacher.folder), "base": "next_token", "weight": 3.0}
    models = {"self_distill": further({"objective": near}), "floor": teacher, "twice as long": further({}, steps=2 * bench.steps), "before": first}
    return {name: nats(bench, model, name="few") for name, model in models.items()}


def meco(bench: Bench, seed: int) -> dict[str, float]:
    told = bench.train({"condition": {"name": "metadata", "facts": ["source", "domain"], "cooldown": 0.1}}, seed)
    marked = bench.train({"condition": "markers"}, seed)
    plain = bench.train({}, seed)
    return {"meco": nats(bench, told), "markers": nats(bench, marked), "floor": nats(bench, plain)}


def decomposition(bench: Bench, seed: int) -> dict[str, float]:
    cut = bench.train({"pack": {"name": "decomposition", "shortest": 8}}, seed)
    return {"decomposition": nats(bench, cut), "floor": nats(bench, bench.train({}, seed))}


def mixing(bench: Bench, seed: int) -> dict[str, float]:
    names, found = bench.tokens().domains, {}
    equal = {"name": "fixed", "weights": dict.fromkeys(names, 1.0)}
    every = max(8, bench.steps // 6)
    online = {"aioli": {"name": "aioli", "every": every, "learn": 0.4}, "loss_driven": {"name": "loss_driven", "every": max(2, every // 4)}}
    for label, mix in {"proportional": None, "equal": equal, **online}.items():
        model = bench.train({"mix": mix} if mix else {}, seed)
        found[label] = statistics.mean(nats(bench, model, name) for name in names)
    return found | {"floor": min(found["proportional"], found["equal"])}


FLOORS: dict[str, tuple[Callable[[Bench, int], dict[str, float]], str, str, bool]] = {
    "meap": (meap, "meap", "meap", True),
    "ul2": (ul2, "ul2", "ul2", False),
    "masked": (masked, "masked_language", "masked_language", False),
    "ahead": (ahead, "ahead", "multi_token", False),
    "electra": (electra, "electra", "electra", True),
    "diffusion": (diffusion, "bound", "masked_diffusion", False),
    "positions": (positions, "position_prediction", "position_prediction", True),
    "interleaved": (interleaved, "interleaved", "interleaved", False),
    "distill": (distill, "sparse_distill", "sparse_distill", False),
    "self_distill": (self_distill, "self_distill", "self_distill", False),
    "meco": (meco, "meco", "metadata", False),
    "decomposition": (decomposition, "decomposition", "decomposition", False),
    "mixing": (mixing, "aioli", "aioli", False),
}
"""name -> how it is measured, which figure is held against "floor", the method it is of, whether more is better."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything once at its smallest: it shows that it runs, not who is better")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path, help="a folder for stores and finished figures, from which a stopped run goes on")
    asked = parser.parse_args()
    names = asked.only.split(",") if asked.only else list(FLOORS)
    figures: dict[str, dict[str, float]] = {}
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    kept = Kept(asked.keep, [asked.steps, asked.quick])
    with nullcontext(asked.keep) if asked.keep else tempfile.TemporaryDirectory(prefix="bessemer-objectives-") as folder:
        bench = Bench(Path(folder), 6 if asked.quick else asked.steps, asked.quick)
        for name in names:
            started = time.perf_counter()
            runs = [kept(f"{name} {seed}", partial(FLOORS[name][0], bench, seed)) for seed in range(1 if asked.quick else asked.seeds)]
            figures[name] = {key: round(statistics.mean(run[key] for run in runs), 4) for key in runs[0]}
            figures[name]["spread"] = round(max(run[FLOORS[name][1]] for run in runs) - min(run[FLOORS[name][1]] for run in runs), 4)
            print(f"{name:14s} {time.perf_counter() - started:6.0f} s  {json.dumps(figures[name])}", flush=True)
    holds, targets, methods = {}, {}, {}
    for name, found in figures.items():
        _, key, method, more = FLOORS[name]
        holds[name] = found[key] > found["floor"] if more else found[key] < found["floor"]
        targets[name] = f"{key} {'above' if more else 'below'} floor"
        methods[method] = {name: found[key], "floor": found["floor"]}
    print("beaten: " + ", ".join(name for name in holds if holds[name]) + "; not: " + (", ".join(n for n in holds if not holds[n]) or "none"))
    finish("objectives", figures | {"beaten": holds}, targets, all(holds.values()), asked.quick or bool(asked.only), methods)


if __name__ == "__main__":
    main()
