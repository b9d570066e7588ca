"""A training step on fake ranks: what each rank would hold and send, without memory, data or other processes.

One process plays one rank of the mesh: the model is spread by the very code of a real run, on tensors without memory and a process
group without members, and one micro-batch goes forward and backward while a listener writes down what travels. Blocks of the same
shape do the same, so two or three of each kind are built and the rest is counted: what each further block adds is the difference.

Assumed, where a run would have to tell: documents fill their rows, and routers use experts as evenly as is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from bessemer.core import device
from bessemer.core.batch import Batch
from bessemer.core.mesh import ROWS, Mesh, World
from bessemer.core.registry import Choice
from bessemer.models.package import fill
from bessemer.models.transfer import tensors
from bessemer.parallel.layout import Layout
from bessemer.parallel.order import Parallel, spread
from bessemer.plan import held as holds
from bessemer.plan.held import Held, Ones
from bessemer.plan.stand_ins import Dealt, even
from bessemer.plan.traffic import Listener, Traffic


@dataclass
class Plan:
    """What is to be tried.

    Attributes:
        model, vocabulary: the family's choice and its tokens.
        mesh, parallel: as in a recipe.
        objective, optim: the first task's, and the optimizers'.
        dtype: of matrix products.
        rows: of a micro-batch, all ranks' together; `length` columns each.
        micro_batches: of a step.
    """

    model: Choice
    vocabulary: int
    mesh: Mesh
    parallel: Parallel
    objective: Choice
    optim: list[Choice]
    dtype: torch.dtype
    rows: int
    length: int
    micro_batches: int = 1


@dataclass
class Found:
    """What a rank holds, in bytes, and what it sends.

    Attributes:
        parameters: its own shards; this, gradients and optimizer for every rank: [ranks].
        gradients: between forward passes: as large as the shards, or as the whole where sharding waits for the last micro-batch.
        optimizer: state; None where an optimizer's own step can't be tried without numbers.
        activations: what one micro-batch's forward pass keeps for its backward pass, parameters aside.
        gathered: the largest block's parameters, whole, and the next one's, while they are worked with.
        traffic: of one step.
    """

    parameters: Any = 0.0
    gradients: Any = 0.0
    optimizer: Any = 0.0
    activations: float = 0.0
    gathered: float = 0.0
    traffic: list[Traffic] = field(default_factory=list)

    def plus(self, other: Found, times: float) -> Found:
        """The sum of this and so many of another."""
        rows = {(t.kind, t.axes, t.ranks): replace(t) for t in self.traffic}
        for each in other.traffic:
            row = rows.setdefault((each.kind, each.axes, each.ranks), Traffic(each.kind, each.axes, each.ranks))
            row.calls += round(each.calls * times)
            row.bytes += each.bytes * times
        state = None if self.optimizer is None or other.optimizer is None else self.optimizer + times * other.optimizer
        return Found(
            self.parameters + times * other.parameters,
            self.gradients + times * other.gradients,
            state,
            self.activations + times * other.activations,
            self.gathered + times * other.gathered,
            list(rows.values()),
        )

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        held = {"activations_bytes": round(self.activations), "gathered_bytes": round(self.gathered)}
        return {"ranks": self.ranks(), **held, "traffic": [each.plain() for each in self.traffic if each.calls]}

    def ranks(self) -> list[dict[str, Any]]:
        """Ranks that hold the same, with what they hold, the fullest first."""
        columns = [self.parameters, self.gradients, self.parameters * 0 - 1 if self.optimizer is None else self.optimizer]
        kinds, which = numpy.unique(numpy.stack(columns, 1).round(), axis=0, return_inverse=True)
        rows = []
        for number in reversed(range(len(kinds))):
            members = numpy.flatnonzero(which.reshape(-1) == number)
            held = dict(zip(("parameters_bytes", "gradients_bytes", "optimizer_bytes"), kinds[number].tolist(), strict=True))
            if self.optimizer is None:
                held["optimizer_bytes"] = None
            rows.append({"first": int(members[0]), "last": int(members[-1]), "count": len(members), **held})
        return rows


def run(plan: Plan, rank: int = 0) -> Found:
    """What a step takes; what it sends is told for one rank. This process must have no process group.

    Raises:
        RecipeError: the model's sizes don't allow the mesh, or options contradict each other.
    """
    with _fake_ranks(plan.mesh.ranks, rank):
        world, kinds = World(plan.mesh), _kinds(_skeleton(plan))
        few = {kind: blocks[:2] for kind, blocks in kinds.items()}
        least = _try(plan, world, few)
        found = least
        for kind, blocks in kinds.items():
            if len(blocks) > 2:
                more = _try(plan, world, few | {kind: blocks[:3]})
                found = found.plus(more.plus(least, -1.0), len(blocks) - 2)
        return found


@contextmanager
def _fake_ranks(count: int, rank: int) -> Iterator[None]:
    if count == 1:
        yield
        return
    dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _skeleton(plan: Plan) -> Any:
    with torch.device("meta"):
        return plan.model(plan.vocabulary, 0)


def _kinds(model: Any) -> dict[Any, list[int]]:
    """The numbers of the blocks that do the same."""
    found: dict[Any, list[int]] = {}
    for number, (block, windowed) in enumerate(zip(model.blocks, model.windowed, strict=True)):
        shapes = tuple((name, tuple(value.shape)) for name, value in block.named_parameters())
        found.setdefault((shapes, windowed), []).append(number)
    return found


def _few(plan: Plan, chosen: dict[Any, list[int]]) -> Any:
    """The model with some of its blocks, on meta."""
    model = _skeleton(plan)
    numbers = sorted(number for blocks in chosen.values() for number in blocks)
    model.blocks = nn.ModuleList(model.blocks[number] for number in numbers)
    model.windowed = [model.windowed[number] for number in numbers]
    return model.train()


def _filled(model: Any, mode: FakeTensorMode) -> Any:
    with mode:
        fill(model, {name: torch.empty(value.shape, dtype=value.dtype, device=device.device()) for name, value in tensors(model).items()}, None)
    return model


def _try(plan: Plan, world: World, chosen: dict[Any, list[int]]) -> Found:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    ones = Ones()
    state = holds.state(plan.optim, _filled(_few(plan, chosen), ones), ones)
    model = _filled(_few(plan, chosen), mode)
    layout = spread(model, world, plan.parallel, dtype=plan.dtype)
    if layout.columns is not None:
        layout.columns = Dealt(layout.columns.group, layout.columns.method)
    even(model)
    held = Held(model)
    steps = []
    for count in (1, 2)[: plan.micro_batches]:
        listener = Listener(world)
        with mode, listener:
            _step(plan, layout, [_batch(plan, world) for _ in range(count)], held)
        steps.append(Found(traffic=listener.traffic()))
        model.zero_grad(set_to_none=True)
    found = steps[0] if plan.micro_batches == 1 else steps[0].plus(steps[1].plus(steps[0], -1.0), plan.micro_batches - 1)
    found.parameters = holds.parameters(model, world)
    found.gradients = holds.gradients(model, world, layout)
    found.optimizer = None if state is None else holds.own_state(state, model, world)
    found.activations = held.bytes
    found.gathered = holds.gathered(model, layout, plan.parallel, plan.dtype)
    return found


def _step(plan: Plan, layout: Layout, batches: Sequence[Batch], held: Held) -> None:
    """Forward and backward over micro-batches, in the order of train/engine.py."""
    objective = plan.objective()
    for number, batch in enumerate(batches, start=1):
        layout.before_micro_batch(last=number == len(batches))
        with torch.autocast(device.device().type, dtype=plan.dtype, enabled=plan.dtype != torch.float32), held:
            with unset_fake_temporarily():
                batch = layout.cut(objective.before(batch))
            outputs = layout.model(batch)
            terms = objective(outputs, batch)
            terms.terms |= outputs.terms.terms
        torch.stack([term.sum.float() * term.scale for _, term in terms if term.scale]).sum().backward()
    layout.after_micro_batches()
    layout.norm([p for p in layout.model.parameters() if p.requires_grad])


def _batch(plan: Plan, world: World) -> Batch:
    """A rank's rows of a micro-batch, each one document: real tensors, few and small."""
    with unset_fake_temporarily():
        rows = max(1, -(-plan.rows // world.count(*ROWS)))
        tokens = torch.zeros(rows, plan.length, dtype=torch.int64)
        positions = torch.arange(plan.length).expand(rows, -1).contiguous()
        return Batch(tokens, positions, torch.ones_like(tokens), tokens.clone(), {"next_token": torch.ones(rows, plan.length)})
