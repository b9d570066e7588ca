"""A training step on fake ranks: what each rank would hold and send, without memory, data or other processes.

One process plays one rank of the mesh: the model is spread by the very code of a real run, on a process group without members and on
tensors without memory (with memory where the model is small, which is ten times as fast), and a micro-batch or two go forward and
backward while a listener writes down what travels. What goes on likewise is counted: blocks of the same shape do the same, so two or three
of each kind are built, and what each further one adds is the difference; so it is with micro-batches. Of a pipeline each place is tried
that differs from the others.

Assumed, where a run would have to tell: documents fill their rows and captions their columns, routers use experts as evenly as is wanted,
a step has of each task what the first steps have on the average, and a compiler that is given a budget for activations uses all of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from bessemer.core import device
from bessemer.core.batch import Batch
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import Choice
from bessemer.core.work import Work
from bessemer.models.package import fill
from bessemer.models.reparameterized import reparameterize
from bessemer.models.transfer import parameter_roles, tensors
from bessemer.parallel import pipeline
from bessemer.parallel.order import Parallel, spread
from bessemer.plan import formula, tasks, update
from bessemer.plan import held as holds
from bessemer.plan import step as steps
from bessemer.plan.held import Held, Ones
from bessemer.plan.stand_ins import Dealt, even, told_apart
from bessemer.plan.tasks import Untried
from bessemer.plan.traffic import Listener, Traffic
from bessemer.train import optimizers
from bessemer.train.task import Task

SMALL = 2**20
"""Parameters up to which tensors have memory."""
HELD = ("parameters", "gradients", "optimizer", "activations", "gathered")


@dataclass
class Plan:
    """What is to be tried.

    Attributes:
        model, vocabulary: the family's choice and its tokens.
        mesh, parallel: as in a recipe.
        tasks: as in a recipe.
        optim, around: the optimizers', and what acts around them.
        adapt: what linear layers' weights are made of.
        dtype: of matrix products.
        rows: of a micro-batch, all ranks' together; `length` columns each.
        micro_batches: of a step.
        compile: whether the run would compile.
        mixed: whether a micro-batch holds rows of every task.
        work: whose stage it is, for errors.
        untried: tasks for whose passes next-token prediction stands in.
    """

    model: Choice
    vocabulary: int
    mesh: Mesh
    parallel: Parallel
    tasks: list[Task]
    optim: list[Choice]
    dtype: torch.dtype
    rows: int
    length: int
    micro_batches: int = 1
    compile: bool = False
    mixed: bool = False
    adapt: Choice | None = None
    around: list[Choice] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(Path(), name="train"))
    untried: frozenset[str] = frozenset()


@dataclass
class Found:
    """What ranks hold, in bytes, and what they send.

    Attributes:
        parameters: its own shards; this, gradients, optimizer and activations for every rank: [ranks].
        gradients: between forward passes: as large as the shards, or as the whole where sharding waits for the last micro-batch.
        optimizer: state of what moves parameters and of what acts around it; None where its step can't be tried without numbers.
        activations: what the forward passes under way keep for their backward passes, parameters aside: one's, or of a pipeline as many as its
            schedule has under way at once.
        gathered: the largest block's parameters, whole, and the next one's, while they are worked with.
        traffic: of one step, by place along the pipe axis.
        untried: tasks whose passes ask for what their data holds, so that next-token prediction stood in; their parameters are counted.
    """

    parameters: Any = 0.0
    gradients: Any = 0.0
    optimizer: Any = 0.0
    activations: Any = 0.0
    gathered: Any = 0.0
    traffic: list[list[Traffic]] = field(default_factory=list)
    untried: tuple[str, ...] = ()

    def plus(self, other: Found, times: float) -> Found:
        """The sum of this and so many of another."""
        state = None if self.optimizer is None or other.optimizer is None else self.optimizer + times * other.optimizer
        return Found(
            self.parameters + times * other.parameters,
            self.gradients + times * other.gradients,
            state,
            self.activations + times * other.activations,
            self.gathered + times * other.gathered,
            [_added(*each, times) for each in zip(self.traffic, other.traffic, strict=True)],
        )

    def at(self, start: int, stop: int) -> Found:
        """What these ranks hold, and the traffic as it is."""
        held = {name: getattr(self, name) for name in HELD}
        part: dict[str, Any] = {name: None if each is None else each[start:stop] for name, each in held.items()}
        return Found(**part, traffic=self.traffic)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        rows = [({"pipe": place} if len(self.traffic) > 1 else {}) | t.plain() for place, each in enumerate(self.traffic) for t in each if t.calls]
        return {"ranks": self.ranks(), "traffic": rows}

    def ranks(self) -> list[dict[str, Any]]:
        """Ranks that hold the same, with what they hold, the fullest first."""
        state = self.parameters * 0 - 1 if self.optimizer is None else self.optimizer
        columns = [self.parameters, self.gradients, state, self.activations, self.gathered]
        kinds, which = numpy.unique(numpy.stack(columns, 1).round(), axis=0, return_inverse=True)
        rows = []
        for number in reversed(range(len(kinds))):
            members = numpy.flatnonzero(which.reshape(-1) == number)
            held = {f"{name}_bytes": value for name, value in zip(HELD, kinds[number].tolist(), strict=True)}
            if self.optimizer is None:
                held["optimizer_bytes"] = None
            rows.append({"first": int(members[0]), "last": int(members[-1]), "count": len(members), **held})
        return rows


def _added(some: list[Traffic], more: list[Traffic], times: float) -> list[Traffic]:
    rows = {(t.kind, t.axes, t.ranks): replace(t) for t in some}
    for each in more:
        row = rows.setdefault((each.kind, each.axes, each.ranks), Traffic(each.kind, each.axes, each.ranks))
        row.calls += round(each.calls * times)
        row.bytes += each.bytes * times
    return list(rows.values())


def run(plan: Plan, rank: int = 0) -> Found:
    """What a step takes; what is sent is told for one rank of each place of the pipe axis. This process must have no process group.

    Args:
        rank: within its place: from 0 to the ranks of one stage.

    Raises:
        RecipeError: the model's sizes don't allow the mesh, or options contradict each other.
    """
    while True:
        try:
            return replace(_run(plan, rank), untried=tuple(task.name for task in plan.tasks if task.name in plan.untried))
        except Untried as found:
            plan = replace(plan, untried=plan.untried | {found.task})


def put_together(plan: Plan) -> None:
    """Has the plan's model, tasks, optimizers and what acts around them meet in one process, without memory.

    Raises:
        BessemerError: they contradict each other.
    """
    mode = Ones()
    with suppress(Untried, RuntimeError):  # so torch refuses what asks for numbers; that comes out where there are some
        model = _filled(_skeleton(plan), mode)
        with mode:
            optimizers.build(model, plan.optim, parameter_roles(model), plan.around)


def _run(plan: Plan, rank: int) -> Found:
    if plan.mesh.pipe == 1:
        with _fake_ranks(plan.mesh.ranks, rank):
            return _whole(plan, World(plan.mesh))
    size, places, known = plan.mesh.ranks // plan.mesh.pipe, [], {}
    for place in range(plan.mesh.pipe):
        with _fake_ranks(plan.mesh.ranks, place * size + rank):
            world = World(plan.mesh)
            kind = _stages(plan, world)
            if kind not in known:
                known[kind] = _try(plan, world, None)
            found, activations = known[kind]
            sent = Traffic("send", "pipe", plan.mesh.pipe, *formula.sends(plan, _skeleton(plan), place))
            found = replace(found, activations=found.parameters * 0 + activations[place], traffic=[[*found.traffic[0], sent]])
            places.append(found.at(place * size, (place + 1) * size))
    columns = {name: [getattr(each, name) for each in places] for name in HELD}
    held: dict[str, Any] = {n: None if any(each is None for each in column) else numpy.concatenate(column) for n, column in columns.items()}
    return Found(**held, traffic=[each.traffic[0] for each in places])


def _whole(plan: Plan, world: World) -> Found:
    """Of ranks that each have all blocks."""
    kinds = _kinds(_skeleton(plan))
    few = {kind: blocks[:2] for kind, blocks in kinds.items()}
    least, _ = _try(plan, world, few)
    found = least
    for kind, blocks in kinds.items():
        if len(blocks) > 2:
            more, _ = _try(plan, world, few | {kind: blocks[:3]})
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
        model: Any = plan.model(plan.vocabulary, 0)
        model = model if plan.adapt is None else reparameterize(model, plan.adapt, 0)
        tasks.objectives(plan, model)
    return model


def _kinds(model: Any) -> dict[Any, list[int]]:
    """The numbers of the blocks that do the same."""
    found: dict[Any, list[int]] = {}
    for number, (block, windowed) in enumerate(zip(model.blocks, model.windowed, strict=True)):
        found.setdefault((_shapes(block), windowed), []).append(number)
    return found


def _shapes(block: nn.Module) -> Any:
    return tuple((name, tuple(value.shape)) for name, value in block.named_parameters())


def _stages(plan: Plan, world: World) -> Any:
    """What this rank's place along the pipe axis has, as places that do the same have it too."""
    found = pipeline.Pipeline(_skeleton(plan), world, plan.parallel.pipe, plan.parallel.cuts, plan.parallel.remat == "full", plan.dtype)
    return tuple((stage.first, stage.last, tuple(map(_shapes, stage.blocks))) for stage in found.stages)


def _few(plan: Plan, chosen: dict[Any, list[int]] | None) -> Any:
    """The model with some of its blocks (None: all), on meta."""
    model = _skeleton(plan)
    if chosen is not None:
        numbers = sorted(number for blocks in chosen.values() for number in blocks)
        model.blocks = nn.ModuleList(model.blocks[number] for number in numbers)
        model.windowed = [model.windowed[number] for number in numbers]
    return model.train()


def _filled(model: Any, mode: AbstractContextManager[Any]) -> Any:
    with mode:
        fill(model, {name: torch.zeros(value.shape, dtype=value.dtype, device=device.device()) for name, value in tensors(model).items()}, None)
    return model


def _try(plan: Plan, world: World, chosen: dict[Any, list[int]] | None) -> tuple[Found, list[float]]:
    """This rank's step, with some of the blocks (None: all); and by place along the pipe axis what activations would come to there."""
    model = _few(plan, chosen)
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    mode: Any = nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True)
    state = _state(plan, _kinds(model))
    budget = plan.compile and plan.parallel.remat == "budget"
    options = plan.parallel.model_copy(update={"remat": "none"}) if budget else plan.parallel
    passes = tasks.passes(plan, _filled(model, mode), world)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # copies of buffers ask whether they have one
        layout = spread(model, world, options, dtype=plan.dtype)
    if layout.columns is not None:
        layout.columns = Dealt(layout.columns.group, layout.columns.method)
    even(model)
    told_apart(model)
    kinds = passes.kinds if layout.stages is None else _even(layout.stages, passes)
    helds, first, kept = [Held(root) for root in layout.roots], kinds[0][0], [0.0] * len(layout.roots)

    def take(*batches: Batch) -> Found:
        """What these micro-batches send; what the first of them keeps goes into `kept`, if it is more than what is there."""
        listener = Listener(world)
        with mode, listener:
            steps.take(plan, passes.objectives, layout, batches, helds)
        model.zero_grad(set_to_none=True)
        for number, held in enumerate(helds):
            kept[number] = max(kept[number], held.bytes)
            held.restart()
        return Found(traffic=[listener.traffic()])

    found = base = take(first)
    for number, (batch, times) in enumerate(kinds):
        if number or times != 1:
            found = found.plus(take(batch, first).plus(base, -1.0), times - (number == 0))
    every = _every_block(plan, model, chosen)
    moving = optimizers.build(every, plan.optim, parameter_roles(every), plan.around)  # which may refuse what the mesh made of the parameters
    found.parameters = holds.parameters(model, world)
    found.gradients = holds.gradients(model, world, layout)
    found.optimizer = None
    if state is not None:
        alone = update.kept_alone(_state(plan, _kinds(every)) or {}, moving.moving, every, world)
        found.optimizer = holds.own_state(state, model, world) + alone + update.beside(moving.around, every, world)
    found.traffic[0] += update.travels(moving.moving)
    found.gathered = found.parameters * 0 + holds.gathered(model, layout, plan.parallel, plan.dtype)
    share = plan.parallel.budget if budget else 1.0
    kept = [share * each for each in kept]
    if layout.stages is None:
        found.activations = found.parameters * 0 + kept[0]
        return found, kept
    return found, steps.under_way(plan, layout.stages, first, round(sum(times for _, times in kinds)), kept)


def _every_block(plan: Plan, model: Any, chosen: dict[Any, list[int]] | None) -> Any:
    """The whole model with the parameters that this rank's part of it has, where blocks stand in for others like them; the rest is on meta."""
    held = {name: p for name, p in model.named_parameters() if not p.is_meta}
    every = _skeleton(plan)
    if chosen is not None:
        places = {number: place for place, number in enumerate(sorted(n for blocks in chosen.values() for n in blocks))}
        blocks = [(f"blocks.{n}.", f"blocks.{places[chosen[kind][0]]}.") for kind, numbers in _kinds(every).items() for n in numbers]
        rest = {name: p for name, p in held.items() if not name.startswith("blocks.")}
        held = rest | {own + name.removeprefix(other): p for own, other in blocks for name, p in held.items() if name.startswith(other)}
    names, made = {id(p): name for name, p in every.named_parameters()}, dict[int, nn.Parameter]()
    for place, old in list(every.named_parameters(remove_duplicate=False)):
        if names[id(old)] in held:
            module, _, leaf = place.rpartition(".")
            found = held[names[id(old)]]
            every.get_submodule(module)._parameters[leaf] = made.setdefault(id(old), nn.Parameter(found.detach(), found.requires_grad))
    return every


def _even(stages: pipeline.Pipeline, passes: tasks.Passes) -> list[tuple[Batch, float]]:
    """The kinds of micro-batches as a pipeline makes them up: in one shape, and in a number its schedule takes."""
    listed = [batch for batch, times in passes.kinds for _ in range(max(1, round(times)))]
    made = stages.even(listed)
    kinds = [(batch.padded(made[0].rows), times) for batch, times in passes.kinds]
    last, times = kinds[-1]
    return [*kinds[:-1], (last, times + len(made) - len(listed))]


_KNOWN: dict[str, holds.State | None] = {}


def _state(plan: Plan, kinds: dict[Any, list[int]]) -> holds.State | None:
    """The optimizers' state of a model of such blocks, tried with one of each kind; it doesn't depend on the mesh, so it is tried once."""
    one = {kind: [number] for number, kind in enumerate(kinds)}
    key = repr((plan.model, plan.vocabulary, plan.tasks, plan.optim, plan.adapt, one))
    if key not in _KNOWN:
        ones, first = Ones(allow_non_fake_inputs=True), {kind: blocks[:1] for kind, blocks in _kinds(_skeleton(plan)).items() if kind in kinds}
        _KNOWN[key] = holds.state(plan.optim, _filled(_few(plan, first), ones), ones)
    tried = _KNOWN[key]
    if tried is None:
        return None
    order = sorted(kinds, key=lambda kind: kinds[kind][0])
    found = {name: entries for name, entries in tried.items() if not name.startswith("blocks.")}
    for place, kind in enumerate(order):
        own = {name.split(".", 2)[2]: entries for name, entries in tried.items() if name.startswith(f"blocks.{place}.")}
        found |= {f"blocks.{number}.{name}": entries for number in kinds[kind] for name, entries in own.items()}
    return found
