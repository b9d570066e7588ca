"""The pipe axis: stages of blocks on ranks of their own, micro-batches passing through them by a schedule of torch's.

Every rank of the axis reads the same rows and works out masks and positions for itself, so only hidden states travel (and, with experts,
the loss of their routers so far). A stage is the model itself with other parts in the places of those it lacks. What a rank
lacks stays in the model without memory, on the meta device, so that names, roles and groups are the same everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as kinds

from bessemer.core import device
from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World
from bessemer.models.layers import experts
from bessemer.parallel import cost

Schedule = Literal["gpipe", "1f1b", "interleaved", "zb1p", "zbv", "dualpipev"]


class Kind(NamedTuple):
    """A schedule: torch's class, how many stages each rank has by default, whether they lie as a V (first and last on rank 0), and whether the
    backward pass of a stage is cut in two, for its inputs and for its weights."""

    schedule: Any
    stages: int = 1
    folded: bool = False
    split: bool = False


KINDS = {
    "gpipe": Kind(kinds.ScheduleGPipe),
    "1f1b": Kind(kinds.Schedule1F1B),
    "interleaved": Kind(kinds.ScheduleInterleaved1F1B, 2),
    "zb1p": Kind(kinds.ScheduleInterleavedZeroBubble, 2, split=True),
    "zbv": Kind(kinds.ScheduleZBVZeroBubble, 2, folded=True, split=True),
    "dualpipev": Kind(kinds.ScheduleDualPipeV, 2, folded=True, split=True),
}
"""GPipe (Huang et al. 2019), 1F1B (Narayanan et al. 2019), interleaved 1F1B (Narayanan et al. 2021), zero bubble (Qi et al. 2023) in its
1F1B and V forms, DualPipeV (DeepSeek-AI 2025, after "Cut-in-half")."""

Value = Callable[[int, Batch, Outputs, bool], Tensor]
"""What a stage adds to the loss: (number of the micro-batch, batch, outputs, whether it is the last stage) -> 0-d tensor."""


class Pipeline:
    """This rank's stages, and how a step runs through them.

    Args:
        model: whole; the parts of other ranks lose their memory.
        world: the ranks.
        name: of the schedule.
        cuts: the stages' first blocks, or how they are found (parallel/cost.py).
        again: whether blocks compute their forward pass a second time.
        dtype: what matrix products are computed in.

    Raises:
        RecipeError: there are fewer blocks than stages, or nothing trains on the first.
    """

    def __init__(
        self, model: Any, world: World, name: Schedule, cuts: cost.Cuts = "counted", again: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model, self.kind, self.group, self.ranks = model, KINDS[name], world.group("pipe"), world.count("pipe")
        self.count = self.ranks * self.kind.stages
        begins = cost.begins(model, world, self.count, cuts, again, dtype)
        entry = [p for name, p in model.named_parameters() if not name.startswith(("blocks.", "norm.", "head."))]
        if not any(p.requires_grad for p in [*entry, *(p for layer in range(begins[1]) for p in model.blocks[layer].parameters())]):
            problem = "nothing trains on the first stage of the pipeline, and stages pass gradients on to the first"
            raise RecipeError(problem, key="mesh.pipe", mend="mesh.pipe = 1, or train something of the first blocks too")
        self.numbers = [number for number in range(self.count) if self.rank_of(number) == world.index("pipe")]
        self.stages = [Stage(self, number, range(begins[number], begins[number + 1])) for number in self.numbers]
        self.skeleton = _skeleton(model)
        self.wide = bool(model.options.get("experts"))
        model.layers_of_experts = len(experts.mixtures(model))
        self.batches: list[Batch] = []
        self.value: Value = _nothing
        self._schedules: dict[tuple[Any, ...], Any] = {}
        _forget(model, {id(p) for stage in self.stages for p in stage.parameters()})

    def rank_of(self, number: int) -> int:
        """The rank of the axis that a stage lies on."""
        turn, place = divmod(number, self.ranks)
        return self.ranks - 1 - place if self.kind.folded and turn % 2 else place

    @property
    def runs(self) -> list[list[nn.Module]]:
        """The chains of blocks of this rank's stages."""
        chains: list[list[nn.Module]] = [list(stage.blocks) for stage in self.stages]
        return chains + [[module.block] for stage in self.stages if stage.last for module in self.model.ahead]

    def shared(self) -> tuple[list[nn.Parameter], list[int]]:
        """The parameters that the first and the last stage both hold, and the ranks of the axis these lie on."""
        ranks = sorted({self.rank_of(0), self.rank_of(self.count - 1)})
        weight: Any = self.model.embed._parameters["weight"]
        twice = (self.model.options["tied"] or len(self.model.ahead)) and len(ranks) > 1 and not weight.is_meta
        return [weight] if twice else [], ranks

    def step(self, batches: list[Batch], value: Value) -> None:
        """Runs micro-batches, as `even` made them, forward and backward."""
        self.batches, self.value = batches, value
        count, (rows, columns) = len(batches), batches[0].tokens.shape
        numbers = torch.arange(count, device=device.device())
        self._schedule(rows, columns, count).step(number=numbers, target=numbers)
        self.batches, self.value = [], _nothing

    def look(self, batches: list[Batch], value: Value) -> None:
        """Runs micro-batches, as `even` made them, forward alone, each through all stages; for losses between steps."""
        self.batches, self.value = batches, value
        held: dict[int, list[Tensor]] = {}
        sent: list[tuple[Tensor, Any]] = []
        with torch.no_grad():
            for number in range(len(batches)):
                for place, stage in zip(self.numbers, self.stages, strict=True):
                    passed = [] if stage.first else held.pop(place) if place in held else self._received(place, batches[number])
                    found = stage(*passed, number=torch.tensor(number))
                    if stage.last:
                        continue
                    passed = list(found) if isinstance(found, tuple) else [found]
                    if self.rank_of(place + 1) == self.rank_of(place):
                        held[place + 1] = passed
                    else:
                        sent += [(each, dist.isend(each.contiguous(), group=self.group, group_dst=self.rank_of(place + 1))) for each in passed]
        for _, work in sent:
            work.wait()
        self.batches, self.value = [], _nothing

    def _received(self, place: int, batch: Batch) -> list[Tensor]:
        """What the stage before gives."""
        hidden = torch.empty(*batch.tokens.shape, self.model.options["width"], device=device.device())
        found = [hidden, hidden.new_empty(1)] if self.wide else [hidden]
        for each in found:
            dist.recv(each, group=self.group, group_src=self.rank_of(place - 1))
        return found

    def even(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a step in one shape and in a number the schedule takes, made up with padding."""
        rows = max(1, *(batch.rows for batch in batches))
        missing = 0
        if self.kind.schedule is not kinds.ScheduleGPipe:  # the others want one for each stage, in whole turns of the ranks
            wanted = max(len(batches), self.count)
            missing = wanted + -wanted % self.ranks - len(batches)
        return [batch.padded(rows) for batch in batches] + [batches[-1].blank(rows)] * missing

    def _schedule(self, rows: int, columns: int, count: int) -> Any:
        key = (rows, columns, count)
        if key not in self._schedules:
            given = {"n_microbatches": count, "loss_fn": lambda found, _: found.sum(), "scale_grads": False}
            made = [self._stage(stage, rows, columns) for stage in self.stages]
            single = issubclass(self.kind.schedule, kinds.PipelineScheduleSingle)
            self._schedules[key] = self.kind.schedule(made[0] if single else made, **given)
        return self._schedules[key]

    def _stage(self, stage: Stage, rows: int, columns: int) -> PipelineStage:
        hidden = torch.empty(rows, columns, self.model.options["width"], device="meta", requires_grad=True)
        loss = torch.empty(1, device="meta", requires_grad=True)
        passed = (hidden, loss) if self.wide else (hidden,)
        return _Greeting(
            stage, stage.number, self.count, device.device(), input_args=() if stage.first else passed, output_args=(loss,) if stage.last else passed, group=self.group
        )  # fmt: skip


class _Greeting(PipelineStage):
    """torch's stage, but it greets no neighbour on its own rank: before 2.13 both ends of a V did, which gloo can't."""

    def _get_init_p2p_neighbors_ops(self) -> list[Any]:
        return [op for op in super()._get_init_p2p_neighbors_ops() if op.group_peer != self.group_rank]


class Stage(nn.Module):
    """Some neighbouring blocks of the model, with the embedding in front of the first and norm and head after the last."""

    def __init__(self, pipeline: Pipeline, number: int, layers: range) -> None:
        super().__init__()
        model = pipeline.model
        self.number, self.first, self.last = number, number == 0, number == pipeline.count - 1
        self.blocks = nn.ModuleList(model.blocks[layer] for layer in layers)
        entry = Entry(model.embed, self.first or (self.last and len(model.ahead) > 0))
        parts: dict[str, nn.Module | None] = {"embed": entry}
        parts["blocks"] = nn.ModuleList(block if layer in layers else _Pass() for layer, block in enumerate(model.blocks))
        if not self.first:
            parts |= {"place": None, "adapters": nn.ModuleDict()}
        if not self.last:
            parts |= {"norm": _Pass(), "ahead": nn.ModuleList()}
        kept = ["place", "adapters"] * self.first + ["norm", "head", "ahead", "tasks"] * self.last + ["embed"] * (entry.real is not None)
        if model.options["tied"] and (self.first or self.last):
            kept += ["embed", "head"]  # both hold the weight, and must go on holding the same
        self.held = nn.ModuleDict({name: part for name in kept if isinstance(part := getattr(model, name, None), nn.Module)})
        self.__dict__.update(pipeline=pipeline, parts=parts, entry=entry)  # not its own modules: views of the model's

    def forward(self, *passed: Tensor, number: Tensor) -> Any:
        """Hidden states and the loss so far, to the same; the first stage is given nothing, the last returns the loss alone."""
        pipeline: Pipeline = self.__dict__["pipeline"]
        model, batch = pipeline.model, pipeline.batches[int(number)]
        entry: Entry = self.__dict__["entry"]
        entry.hidden = passed[0] if passed else None
        before, model._modules = model._modules, {**model._modules, **self.__dict__["parts"]}
        try:
            outputs = model(batch if self.first else batch.without_inputs())
        finally:
            model._modules = before
        outputs.again = _no_second_pass
        # a view: with a new tensor FSDP2 fails under torch 2.11 where a backward pass is in two parts
        loss = pipeline.value(int(number), batch, outputs, self.last).reshape(1)
        if pipeline.wide and not self.first:
            loss = loss + passed[1]
        if self.last:
            return loss
        return (outputs.hidden, loss) if pipeline.wide else outputs.hidden


class Entry(nn.Module):
    """In the place of the embedding: gives the hidden states that arrived, or looks tokens up where they didn't."""

    def __init__(self, embed: nn.Module, real: bool) -> None:
        super().__init__()
        self.__dict__["real"] = embed if real else None  # the model's own module, not one of this
        self.hidden: Tensor | None = None

    @property
    def real(self) -> nn.Module | None:
        """The embedding, where this stage has one."""
        return self.__dict__["real"]

    def forward(self, tokens: Tensor) -> Tensor:
        found, self.hidden = self.hidden, None
        if found is not None:
            return found
        assert self.real is not None
        return self.real(tokens)


class _Pass(nn.Module):
    """In the place of what another stage does."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


def _nothing(number: int, batch: Batch, outputs: Outputs, last: bool) -> Tensor:
    raise RuntimeError("a stage is run only inside a step")


def _no_second_pass(batch: Batch) -> Outputs:
    raise RecipeError("this objective passes through the trunk twice, which stages of a pipeline can't", key="mesh.pipe", mend="use another axis")


def _forget(model: nn.Module, kept: set[int]) -> None:
    """Gives back the memory of parameters that lie on other ranks, and of the buffers of layers that change themselves there."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and hasattr(module, "after_step") and not any(id(p) in kept for p in own):
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to("meta")
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in kept:
                made.setdefault(id(parameter), nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad))
                module.register_parameter(name, made[id(parameter)])


def _skeleton(model: nn.Module) -> nn.Module:
    """The model as it is now, without memory for its parameters."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()})
