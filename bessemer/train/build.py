"""Putting a run together: what `auto` means, the model, the data, the optimizers, the engine; and sealing the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bessemer.core import device, registry
from bessemer.core.errors import BessemerError, RecipeError
from bessemer.core.progress import Progress
from bessemer.core.registry import Choice
from bessemer.core.work import Work
from bessemer.data.loader import Loader
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.models.package import Model, save_model
from bessemer.models.transfer import parameter_roles
from bessemer.train import dial, memory, optimizers
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.engine import Engine
from bessemer.train.hooks.log import Log
from bessemer.train.metrics import Metrics
from bessemer.train.run import Run
from bessemer.train.source import Source
from bessemer.train.task import Task

SMOKE_STEPS = 4


@dataclass
class Budget:
    """What ends a run, whichever comes first; and the sizes of its batches, `auto` already worked out."""

    steps: int | None
    tokens: int | None
    seconds: float | None
    length: int
    rows: int
    micro_batch: int


def budget(
    work: Work, model: torch.nn.Module, *, steps: int | None, tokens: Any, seconds: float | None, length: Any, batch: Any, micro_batch: Any
) -> Budget:
    """Works out `auto` values and refuses combinations that can't be.

    Raises:
        RecipeError: a number is too small, the micro-batch does not divide the batch, or nothing ends the run.
    """
    for name, value in (
        ("steps", steps),
        ("tokens", tokens),
        ("seconds", seconds),
        ("length", length),
        ("batch", batch),
        ("micro_batch", micro_batch),
    ):
        if isinstance(value, int | float) and value <= 0:
            raise RecipeError(f"must be above 0, and is {value}", key=f"{work.name}.{name}")
    parameters = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    if tokens == "auto":
        tokens = dial.horizon(parameters) if steps is None and seconds is None else None
    if steps is None and tokens is None and seconds is None:
        raise RecipeError("nothing ends the run", key=f"{work.name}.tokens", mend='give steps, tokens or seconds, or tokens = "auto"')
    length = dial.length(model.options["depth"]) if length == "auto" else length
    rows = max(1, dial.batch_tokens(tokens or dial.horizon(parameters)) // length) if batch == "auto" else batch
    micro = dial.micro_rows(rows, length) if micro_batch == "auto" else micro_batch
    if rows % micro:
        raise RecipeError(f"{micro} rows don't divide the global batch of {rows}", key=f"{work.name}.micro_batch", mend="choose a divisor of batch")
    if work.smoke:
        steps, tokens, seconds = SMOKE_STEPS, None, None
    return Budget(steps, tokens, seconds, length, rows, micro)


def model_of(work: Work, tokenizer: Tokenizer, start: Model | None, choice: Choice) -> Any:
    """The model to train: a new one by the recipe, or the earlier one with its weights.

    Raises:
        RecipeError: the earlier model reads another vocabulary.
    """
    if start is None:
        return choice(tokenizer.vocabulary_size, work.seed)
    model = start.build()
    if model.vocabulary < tokenizer.vocabulary_size:
        raise RecipeError(
            f"the earlier model knows {model.vocabulary} tokens, and the tokenizer has {tokenizer.vocabulary_size}",
            key=f"{work.name}.inputs",
            mend="tokenize with the tokenizer that came with the model",
        )
    return model


def number_format(wanted: str, key: str) -> torch.dtype:
    """The type matrix products are computed in."""
    known = {"auto": device.compute_dtype(), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted not in known:
        raise RecipeError(f"there is no number format '{wanted}'", key=key, mend="there is auto, bfloat16, float32")
    return known[wanted]


def run(
    work: Work,
    store: Tokens,
    tokenizer: Tokenizer,
    model: Any,
    spend: Budget,
    *,
    task: list[Task],
    optim: list[Choice],
    schedule: dict[str, Choice],
    clip: float | None,
    guard: Choice,
    dtype: torch.dtype,
    compile: bool,
    keep: int,
    hooks: list[Choice],
    energy: Callable[[], dict[str, Any]],
) -> Run:
    """Everything the loop needs, made from validated options.

    Raises:
        BessemerError: options contradict each other or don't fit the data.
    """
    memory.tune()
    for name in schedule:
        if name not in ("lr", "batch"):
            raise RecipeError(f"there is nothing called '{name}' to schedule", key=f"{work.name}.schedule.{name}", mend="there is lr and batch")
    if len({each.name for each in task}) != len(task):
        raise RecipeError("two tasks have the same name", key=f"{work.name}.task", mend="give each its own name")
    model = model.to(device.device()).train()
    if compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    loaders = {
        each.name: Loader(
            store,
            length=spend.length,
            pack=each.pack,
            mix=each.mix,
            seed=work.seed,
            only=None if each.domains == "auto" else each.domains,
            task=each.name,
        )
        for each in task
    }
    whole = sum(each.share for each in task)
    made = optimizers.build(model, optim, parameter_roles(model))
    flops = model.flops_per_token(spend.length)
    work.info |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": flops,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": spend.rows,
        "micro_batch": spend.micro_batch,
        "length": spend.length,
        "model": registry.as_plain(model.options),
    }
    built = Run(
        work=work,
        model=model,
        engine=Engine(model, {each.name: (each.objective, each.weight) for each in task}, dtype),
        optimizers=made,
        source=Source(loaders, {each.name: each.share / whole for each in task}, spend.micro_batch),
        guard=guard(),
        checkpoints=Checkpointer(
            work.out / "checkpoints", identity={"tokens": store.hash, "tokenizer": tokenizer.fingerprint}, note=work.note, keep_last=keep
        ),
        metrics=Metrics(work.out),
        store=store,
        tokenizer=tokenizer,
        schedules=schedule,
        progress=Progress(steps=spend.steps or 0, horizon=spend.tokens or 0, patience=spend.seconds or 0.0),
        length=spend.length,
        global_rows=spend.rows,
        micro_batch=spend.micro_batch,
        clip=clip,
        flops_per_token=flops,
        peak=device.matrix_peak(dtype),
        energy=energy,
    )
    built.hooks = [Log(built), *(choice(built) for choice in hooks)]
    return built


def finish(done: Run) -> None:
    """Writes the trained model's package into the stage's folder and notes what the run came to."""
    save_model(done.model, done.work.out, tokenizer=done.tokenizer)
    progress = done.progress
    if progress.step == 0:
        raise BessemerError("no step was taken", key=done.work.name)
    done.work.info |= {
        "progress": progress.as_dict(),
        "peak_memory_bytes": device.peak_memory(),
        "optimizer_state_bytes": done.optimizers.state_bytes(),
        "matrix_peak_flops": done.peak,
    }
