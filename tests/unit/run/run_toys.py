"""Stages small enough to run hundreds of times."""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

from bessemer.core import rng
from bessemer.core.artifact import Artifact
from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import Choice, Kind
from bessemer.core.work import Stopped, Work


class Text(Artifact):
    kind = "text"


class Count(Artifact):
    kind = "count"


class Model(Artifact):
    kind = "model"


def write(work: Work, *, words: int = 3, mood: Literal["low", "high"] = "low", path: str | None = None) -> Text:
    """Writes some words."""
    if words < 0:
        raise DataError(f"{words} words can't be written", key="words", mend="give 0 or more")
    (work.out / "text.txt").write_text(" ".join([mood] * words))
    work.info["words"] = words


def count(work: Work, text: Text, *, steps: int = 3) -> Count:
    """Counts step by step, and goes on where it stopped."""
    file = work.out / "done"
    done = int(file.read_text()) if file.exists() else 0
    while done < steps:
        if work.stopping:
            raise Stopped
        done += 1
        file.write_text(str(done))
        work.progress(done, steps, "steps", half=done / 2)


def pair(work: Work, left: Text, right: Text | None = None) -> Count:
    """Takes two texts, or one."""
    (work.out / "pair").write_text(f"{left.info['words']} {right.info['words'] if right else 'none'}")


def gather(work: Work, made: list[Artifact]) -> Count:
    """Takes all there is."""
    (work.out / "kinds").write_text(" ".join(each.manifest["kind"] for each in made))


def fault(work: Work) -> Count:
    """Has a fault of its own."""
    raise ZeroDivisionError("one by none")


def no_stage(work: Work, text: str) -> Count:
    """Its parameter is no artifact."""


def train(
    work: Work, text: Text, *, lr: float = 1.0, steps: int | None = 20, tokens: int | None = None, seconds: float | None = None,
    fails: list[int] = [],
    optim: list[Annotated[Choice, Kind("schedules", role=str)]] = [{"role": "matrix", "name": "wsd"}, "constant"],
) -> Model:  # fmt: skip
    """Pretends to train: the loss falls with the learning rate, and the seed adds a little noise; at seeds in `fails` it fails."""
    if work.seed in fails:
        raise RecipeError(f"can't train at seed {work.seed}", key="fails", mend="take it out")
    number = steps if steps is not None else tokens // 100 if tokens is not None else int(seconds)
    noise = rng.numpy_generator(work.seed, "noise").normal() * 0.01
    with open(work.out / "metrics.jsonl", "w") as file:
        for step in range(1, number + 1):
            loss = 2 + 3 * math.exp(-step * lr / 10) + noise
            time = {"data": 0.01, "forward_backward": 0.8, "update": 0.1, "other": 0.0}
            line = {"step": step, "tokens": 100 * step, "loss": loss, "terms": {"next_token": loss, "z_loss": 0.01}, "learning_rate": lr}
            line |= {"gradient_norm": 1.0, "tokens_per_second": 100.0, "mfu": 0.5, "memory_bytes": 10**8, "seconds": step, "time": time}
            line |= {"energy_joules": 6.0 * step, "energy_measured": False, "skipped": 0} | ({"noise_scale": 321.0} if step > 2 else {})
            file.write(json.dumps(line) + "\n")
            if step % 5 == 0:
                scores = {"code": {"value": loss / 2, "low": 0, "high": 9}, "prose": loss / 3}
                file.write(json.dumps({"step": step, "tokens": 100 * step, "evaluation": {"bits_per_byte": scores}}) + "\n")
        file.write(json.dumps({"step": number, "guard": "skip", "reason": "the loss is inf", "samples": [1, 2]}) + "\n")
        file.write(json.dumps({"step": number, "sample": {"prompt": "<p>", "text": "<script>alert(1)</script>"}}) + "\n")
    work.info["parameters"] = 10
    work.info["removed"] = {"too_short": 3, "twice": 4}
