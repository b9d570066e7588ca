"""Putting a run together: what `auto` means, the model, the data, the optimizers, the engine; and sealing the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bessemer.core import compiler, device, registry
from bessemer.core.collectives import along
from bessemer.core.errors import BessemerError, RecipeError
from bessemer.core.mesh import ROWS, Mesh, World
from bessemer.core.progress import Progress
from bessemer.core.registry import Auto, Choice
from bessemer.core.work import Work
from bessemer.data.example_store import Examples
from bessemer.data.sparse_logits import SparseLogits
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.models.layers.experts import mixtures
from bessemer.models.package import Model, save_model
from bessemer.models.reparameterized import matrices, merge, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.train import dial, feeds, memory, optimizers
from bessemer.train.balanced import Balanced
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.engine import Engine
from bessemer.train.hooks.log import Log
from bessemer.train.metrics import Metrics
from bessemer.train.mixed import MIXED
from bessemer.train.run import Run
from bessemer.train.source import Source
from bessemer.train.task import Task

SMOKE_STEPS, SMOKE_LENGTH, SMOKE_ROWS = 4, 128, 4


@dataclass
class Budget:
    """What ends a run, whichever comes first; and the sizes of its batches, `auto` already worked out."""

    steps: int | None
    tokens: int | None
    seconds: float | None
    flops: float | None
    length: int
    rows: int
    micro_batch: int


def row_length(work: Work, wanted: int | Auto, options: Mapping[str, Any]) -> int:
    """Tokens of a training row: as the recipe says, or what the model's depth asks for.

    Args:
        options: the model's; its `length`, the positions it is made for, may still be "auto".

    Raises:
        RecipeError: rows would be longer than the model's context, or have no token.
    """
    context = options.get("length", "auto")
    most = None if context == "auto" else int(context)
    usual = dial.length(options.get("depth", 1))
    rows = wanted if wanted != "auto" else usual if most is None else min(usual, most)
    _above_zero(work, length=rows)
    if most is not None and rows > most:
        problem = f"rows of {rows} tokens are longer than the {most} the model is made for"
        raise RecipeError(problem, key=f"{work.name}.length", mend="shorten the rows, or raise model.length if the model is a new one")
    return min(rows, SMOKE_LENGTH) if work.smoke else rows


def budget(
    work: Work,
    model: Any,
    length: int,
    *,
    steps: int | None,
    tokens: int | Auto | None,
    seconds: float | None,
    flops: float | None,
    batch: int | Auto,
    micro_batch: int | Auto,
    mesh: Mesh,
) -> Budget:
    """Works out `auto` values and refuses combinations that can't be.

    Raises:
        RecipeError: a number is too small, the operations don't allow one step, the micro-batch does not divide the batch, or nothing ends the run.
    """
    _above_zero(work, steps=steps, tokens=tokens, seconds=seconds, flops=flops, batch=batch, micro_batch=micro_batch)
    flops = None if flops == float("inf") else flops
    parameters = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    parameters += sum(m.outputs * m.inputs for m in matrices(model))  # reparameterized ones count as what they stand for
    parameters += int(sum(m.active_weights() for m in mixtures(model).values()))
    if tokens == "auto":
        tokens = dial.horizon(parameters) if steps is None and seconds is None and flops is None else None
    if steps is None and tokens is None and seconds is None and flops is None:
        raise RecipeError("nothing ends the run", key=f"{work.name}.tokens", mend='give steps, tokens, seconds or flops, or tokens = "auto"')
    price = model.flops_per_token(length)
    seen = tokens or (dial.horizon(parameters) if flops is None else int(flops / price))
    rows = max(1, dial.batch_tokens(seen) // length) if batch == "auto" else batch
    micro = dial.micro_rows(rows, length, mesh) if micro_batch == "auto" else micro_batch
    if rows % micro:
        raise RecipeError(f"{micro} rows don't divide the global batch of {rows}", key=f"{work.name}.micro_batch", mend="choose a divisor of batch")
    if work.smoke:
        return Budget(SMOKE_STEPS, None, None, None, length, SMOKE_ROWS, SMOKE_ROWS)
    if flops is not None and flops < rows * length * price:
        problem = f"a step takes {rows * length * price:.3g} operations, and {flops:.3g} are allowed"
        raise RecipeError(problem, key=f"{work.name}.flops", mend="allow more, or make the batch smaller")
    return Budget(steps, tokens, seconds, flops, length, rows, micro)


def _above_zero(work: Work, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and not value > 0:  # nan is not
            raise RecipeError(f"must be above 0, and is {value}", key=f"{work.name}.{name}")


def model_of(work: Work, tokenizer: Tokenizer, start: Model | None, choice: Choice, length: int | Auto) -> tuple[Any, int]:
    """The model to train, a new one by the recipe or the earlier one with its weights; and the length of its rows.

    A new model whose own length is left open is made for exactly the rows it is trained on.

    Raises:
        RecipeError: the earlier model reads another vocabulary, or shorter rows.
    """
    if start is None:
        rows = row_length(work, length, choice.options)
        if choice.options.get("length") == "auto":
            choice = choice.with_options(length=rows)
        return choice(tokenizer.vocabulary_size, work.seed), rows
    model: Any = start.build()
    if model.vocabulary < tokenizer.vocabulary_size:
        raise RecipeError(
            f"the earlier model knows {model.vocabulary} tokens, and the tokenizer has {tokenizer.vocabulary_size}",
            key=f"{work.name}.inputs",
            mend="tokenize with the tokenizer that came with the model",
        )
    return model, row_length(work, length, model.options)


def adapted(work: Work, model: Any, choice: Choice | None, *, fresh: bool) -> Any:
    """The model with its linear layers reparameterized as the recipe says.

    Args:
        fresh: whether the model has learned nothing yet.

    Raises:
        RecipeError: no layer matches, or the method would throw an earlier model's weights away.
    """
    if choice is None:
        return model
    model = reparameterize(merge(model), choice, work.seed)
    if not fresh and not all(matrix.keeps for matrix in matrices(model)):
        problem = f"{choice.name} begins from nothing, and what the earlier model has learned would be lost"
        raise RecipeError(problem, key=f"{work.name}.adapt", mend="choose one that keeps it, such as lora, or begin a new model")
    return model


def number_format(wanted: str, key: str) -> torch.dtype:
    """The type matrix products are computed in."""
    known = {"auto": device.compute_dtype(), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted not in known:
        raise RecipeError(f"there is no number format '{wanted}'", key=key, mend="there is auto, bfloat16, float32")
    return known[wanted]


def run(
    work: Work,
    store: Tokens | None,
    tokenizer: Tokenizer,
    model: Any,
    spend: Budget,
    *,
    world: World,
    parallel: Parallel,
    task: list[Task],
    examples: list[Examples],
    logits: SparseLogits | None,
    balance: Choice | None,
    mixed: bool,
    optim: list[Choice],
    around: list[Choice],
    per_layer: bool,
    schedule: dict[str, Choice],
    clip: float | None,
    guard: Choice,
    dtype: torch.dtype,
    compile: bool,
    keep: int,
    hooks: list[Choice],
    energy: Callable[[], dict[str, Any]],
) -> Run:
    """Everything the loop needs, made from validated options; raises BessemerError where they contradict each other or don't fit the data."""
    check(work, schedule, around, clip, keep)
    memory.tune()
    model = model.to(device.device()).train()
    objectives = feeds.objectives(work, model, task, tokenizer, along(world.group(*ROWS)))
    one = feeds.mixed(work, model, objectives, balance) if mixed else None
    fold = one is None and world.count("pipe", "context") == 1
    supply = feeds.feeds(work, task, objectives, store, examples, tokenizer, spend.length, spend.rows, logits, fold)
    objectives = objectives if one is None else {MIXED: (one, 1.0)}
    compiler.fuse(compile and not work.smoke)
    flops = model.flops_per_token(spend.length)
    layout = spread(model, world, parallel, compile=compile and not work.smoke, dtype=dtype)
    optimizer = optimizers.build(model, optim, parameter_roles(model), around)
    work.info |= {
        "mesh": world.mesh.plain(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops_per_token": flops,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": spend.rows,
        "micro_batch": spend.micro_batch,
        "length": spend.length,
        "model": registry.as_plain(model.options),
    }
    identity = {"tokens": store.hash if store else "", "tokenizer": tokenizer.fingerprint}
    identity |= {f"examples {each.folder.name}": each.hash for each in examples}
    built = Run(
        work=work,
        model=model,
        engine=Engine(model, objectives, dtype, layout) if balance is None else Balanced(model, objectives, dtype, balance, layout),
        optimizers=optimizer,
        source=Source(supply, spend.micro_batch, world.index(*ROWS), world.count(*ROWS), None if one is None else one.join),
        guard=guard(),
        checkpoints=Checkpointer(work.out / "checkpoints", identity=identity, note=work.note, keep_last=keep),
        metrics=Metrics(work.out, silent=not world.first),
        store=store,
        examples=examples,
        tokenizer=tokenizer,
        schedules=schedule,
        progress=_progress(spend, flops),
        length=spend.length,
        global_rows=spend.rows,
        micro_batch=spend.micro_batch,
        clip=None if clip == float("inf") else clip,
        flops_per_token=flops,
        energy=energy,
    )
    if per_layer:
        _check_per_layer(built)
        optimizer.update_in_backward(built.checkpoints.before_update)
    built.hooks = [Log(built), *(choice(built) for choice in hooks if world.first or not getattr(choice.target, "listens", False))]
    return built


def _progress(spend: Budget, price: float) -> Progress:
    """A run's beginning, with what will end it."""
    ends: dict[str, Any] = {
        "steps": spend.steps or 0,
        "horizon": spend.tokens or 0,
        "patience": spend.seconds or 0.0,
        "allowance": spend.flops or 0.0,
    }
    return Progress(**ends, price=price, batch=spend.rows * spend.length)


def check(work: Work, schedule: dict[str, Choice], around: list[Choice], clip: float | None, keep: int) -> None:
    """Refuses numbers that make no sense, schedules of nothing, and those that follow what nobody measures."""
    _above_zero(work, clip=clip, keep=keep)
    for name, choice in schedule.items():
        if name not in ("lr", "batch"):
            raise RecipeError(f"there is nothing called '{name}' to schedule", key=f"{work.name}.schedule.{name}", mend="there is lr and batch")
        follows = getattr(choice.target, "follows", None)
        if follows and follows not in [method.name for method in around]:
            problem = f"{choice.name} follows what {follows} measures, which isn't there"
            raise RecipeError(problem, key=f"{work.name}.schedule.{name}", mend=f'add around = [{{ name = "{follows}" }}]')


def _check_per_layer(run: Run) -> None:
    """Refuses what an update inside the backward pass contradicts."""
    problem = None
    if not run.world.alone:
        problem = f"gradients are summed over {run.world.mesh.describe()}", "mesh", "train with one process"
    elif run.clip is not None:
        problem = f"the gradient is to be clipped at {run.clip}", "clip", "clip = inf"
    elif run.guard.holds_back:
        problem = "the guard is to hold bad updates back", "guard", 'guard = "watch"'
    elif isinstance(run.engine, Balanced):
        problem = "balance weighs whole gradients against each other", "balance", "leave balance out"
    elif len(run.engine.objectives) > 1:
        problem = f"each of the tasks {', '.join(run.engine.objectives)} has a micro-batch of its own", "task", "mixed = true, or one task"
    elif run.micro_batch != run.global_rows or "batch" in run.schedules:
        problem = f"a batch of {run.global_rows} rows is taken in parts of {run.micro_batch}", "micro_batch", "micro_batch as large as batch"
    if problem:
        text, key, mend = problem
        raise RecipeError(
            f"{text}, and with per_layer each parameter moves before the rest of the gradient is there", key=f"{run.work.name}.{key}", mend=mend
        )


def finish(done: Run) -> None:
    """Writes the trained model's package into the stage's folder and notes what the run came to."""
    with done.optimizers.averaged():
        whole = dict(done.engine.layout.whole())
        if done.world.first:
            save_model(done.model, done.work.out, tokenizer=done.tokenizer, whole=whole)
        done.world.barrier()  # whoever opens the model finds it
    progress = done.progress
    if progress.step == 0:
        raise BessemerError("no step was taken", key=done.work.name)
    done.work.info |= {
        "progress": progress.as_dict(),
        "peak_memory_bytes": device.peak_memory(),
        "optimizer_state_bytes": done.optimizers.state_bytes(done.world),
        "matrix_peak_flops": done.peak,
    }
