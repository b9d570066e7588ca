"""The stage that trains."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from bessemer.core import device, products
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import Auto, Choice, Kind
from bessemer.core.work import Work
from bessemer.data.example_store import Examples
from bessemer.data.sparse_logits import SparseLogits
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens
from bessemer.models.package import Model
from bessemer.parallel.order import Parallel
from bessemer.run.energy import Meter
from bessemer.train import build
from bessemer.train.loop import train as loop
from bessemer.train.task import Task

OPTIM: list[Any] = [{"role": "matrix", "name": "muon"}, {"name": "adamw", "lr": 0.03}]
"""What moves matrices, and what the rest: embedding, head, norms, whose rate matters as much (LOG.md, 2026-11-22)."""


def train(
    work: Work,
    tokenizer: Tokenizer,
    store: Tokens | None = None,
    start: Model | None = None,
    examples: list[Examples] = [],
    logits: SparseLogits | None = None,
    *,
    model: Annotated[Choice, Kind("models/families")] = {"name": "decoder", "depth": 4},  # type: ignore[assignment]
    adapt: Annotated[Choice, Kind("models/reparameterize")] | None = None,
    task: list[Task] = [Task()],
    mix: Annotated[Choice, Kind("data/mix")] = "proportional",  # type: ignore[assignment]
    balance: Annotated[Choice, Kind("train/balance")] | None = None,
    mixed: bool = False,
    optim: list[Annotated[Choice, Kind("optim", role=str, match=str, dims=int)]] = OPTIM,
    around: list[Annotated[Choice, Kind("optim/around", role=str, match=str, dims=int)]] = [],
    per_layer: bool = False,
    schedule: dict[str, Annotated[Choice, Kind("schedules")]] = {"lr": "wsd"},  # type: ignore[dict-item]
    length: int | Auto = "auto",
    batch: int | Auto = "auto",
    micro_batch: int | Auto = "auto",
    steps: int | None = None,
    tokens: int | Auto | None = "auto",
    seconds: float | None = None,
    flops: float | None = None,
    clip: float | None = 1.0,
    guard: Annotated[Choice, Kind("train/guards")] = "standard",  # type: ignore[assignment]
    precision: Literal["auto", "bfloat16", "float32"] = "auto",
    compile: bool | Auto = "auto",
    mesh: dict[str, int] = {},
    parallel: Parallel = Parallel(),
    keep: int = 2,
    hooks: list[Annotated[Choice, Kind("train/hooks")]] = ["evaluate", "save"],  # type: ignore[list-item]
) -> Model:
    """Trains a model on a token store, on examples or on both, from scratch or from an earlier model.

    Args:
        model: the family and its options; `depth` alone gives a sensible model.
        adapt: what the weights of linear layers are made of while they train (`lora`, `sltrain`, ...); None: themselves, or as the
            earlier model's were. An earlier model's own are merged before new ones are put in place; `bessemer export` merges them too.
        task: what is learned, from which domains or examples, with which objective and weight.
        mix: how domains of text share the batches of a task that has no mix of its own.
        mixed: put rows of all tasks into each micro-batch, for one pass of the trunk; false: each is of one task.
        balance: what the tasks' gradients become one by; None: their sum, each times its task's weight.
        optim: which optimizer takes which parameters; the first entry whose role, match or dims fit.
        around: what acts around the updates: averages of the weights, layers that take turns, gradients of other kinds.
        per_layer: move each parameter inside the backward pass, as soon as its gradient is there, which is then dropped.
        schedule: factors of the learning rate (`lr`) and of the batch (`batch`).
        length: tokens of a row; a new model is made for as many positions, unless its own `length` says otherwise.
        batch: rows of a global batch.
        micro_batch: rows computed at once by all ranks together; the gradient doesn't depend on it.
        steps: end after so many steps, or
        tokens: after so many tokens (`auto`: 20 for each parameter, if nothing else ends the run), or
        seconds: after so many seconds of training, or
        flops: before the step that would go beyond so many operations, by the model's own formula over all passes of tokens, whichever comes first;
            a forward pass alone is a third, and what update rules multiply themselves, such as Muon and SOAP, is left out.
        clip: the longest gradient norm let through; inf for any.
        precision: `float32`, `bfloat16`, or `auto` for what is fastest here, which may be products of rounded factors (core/products.py).
        compile: compile each kind of block once.
        mesh: how many ranks share the work along each axis: pipe, replica, data, context, tensor, expert, expert_tensor (core/mesh.py);
            their product is how many processes are started.
        parallel: what the sizes of the mesh don't say (parallel/order.py).
        keep: checkpoints kept.
    """
    if store is not None:
        store.check_tokenizer(tokenizer)
    new, rows = build.model_of(work, tokenizer, start, model, length)
    new = build.adapted(work, new, adapt, fresh=start is None)
    ends: dict[str, Any] = {"steps": steps, "tokens": tokens, "seconds": seconds, "flops": flops}
    spend = build.budget(work, new, rows, **ends, batch=batch, micro_batch=micro_batch, mesh=Mesh.of(mesh))
    task = [each if each.mix is not None else each.model_copy(update={"mix": mix}) for each in task]
    dtype = build.number_format(precision, f"{work.name}.precision")
    run = build.run(
        work, store, tokenizer, new, spend, world=World(Mesh.of(mesh)), parallel=parallel, task=task, examples=examples, logits=logits, balance=balance, mixed=mixed, optim=optim, around=around, per_layer=per_layer, schedule=schedule, clip=clip, guard=guard, dtype=dtype,
        compile=device.can_compile() if compile == "auto" else compile, keep=keep, hooks=hooks, energy=partial(spent, Meter()),
    )  # fmt: skip
    with products.rounded(precision == "auto"):
        loop(run)
        build.finish(run)
    return Model(work.out, {})


def spent(meter: Meter) -> dict[str, object]:
    """The energy so far as a line of metrics.jsonl records it."""
    energy = meter.read()
    return {"energy_joules": round(energy.joules, 1), "energy_measured": energy.measured}
