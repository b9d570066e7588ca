"""How a model lies on the mesh, and what the engine must do because of it: flags before a micro-batch, sums after the last."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from bessemer.core import device, shards
from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import AXES, World
from bessemer.models.package import fill
from bessemer.parallel.buckets import Buckets
from bessemer.parallel.context.columns import Axis
from bessemer.parallel.levels import Levels
from bessemer.parallel.neighbours import Neighbours
from bessemer.parallel.pipeline import Pipeline

if TYPE_CHECKING:
    from bessemer.objectives._objective import Objective


@dataclass
class Layout:
    """A model spread over ranks; with one process every method is the identity or as torch does it.

    Attributes:
        world: the ranks.
        model: the model, its parameters already this rank's.
        partial: axes -> the parameters whose gradients, after the last micro-batch, are still to be summed along these axes.
        parts: parameter name -> rows of the matrices stacked in it, for those that tensor parallelism cuts part by part.
        stages: this rank's part of a pipeline, if there is one.
        unsharded: whether gradients are kept whole until the last micro-batch, and sharded only then.
        gathered: whether parameters stay whole between the micro-batches of a step.
        columns: the ranks that share the columns of every row, or None.
        buckets: what sums those partial gradients, made from `partial` before the first micro-batch.
        guides: what guides collectives that go by levels of the ranks, or through memory in common.
        in_memory: whether ranks of one machine exchange through memory they have in common.
    """

    world: World
    model: nn.Module
    partial: dict[tuple[str, ...], list[nn.Parameter]] = field(default_factory=dict)
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stages: Pipeline | None = None
    unsharded: bool = False
    gathered: bool = False
    columns: Axis | None = None
    buckets: list[Buckets] = field(default_factory=list)
    guides: Sequence[Levels | Neighbours] = ()
    in_memory: bool = False

    def given(self, batch: Batch, objective: Objective) -> Batch:
        """A micro-batch as the model is given it: this rank's columns, and what its objective does first.

        Raises:
            RecipeError: it has something without columns, or the objective reads it before the first stage of a pipeline does.
        """
        if objective.acts_before:
            if self.stages is not None:
                problem = f"the objective of '{batch.task}' reads the batch before the trunk does, which stages of a pipeline can't"
                raise RecipeError(problem, key="mesh.pipe", mend="use pipe = 1")
            batch = replace(batch, first=objective.before)
        return batch if self.columns is None else self.columns.cut(batch)

    @property
    def roots(self) -> list[nn.Module]:
        """What is sharded as a whole: the model, or this rank's stages of it."""
        return [self.model] if self.stages is None else list(self.stages.stages)

    @property
    def levels(self) -> list[Levels]:
        """What guides collectives that go by levels of the ranks."""
        return [guide for guide in self.guides if isinstance(guide, Levels)]

    def before_micro_batch(self, last: bool) -> None:
        """Tells the data axis whether another micro-batch of the step follows."""
        if last and torch.is_grad_enabled():
            for each in self._buckets():
                each.expect()
        if isinstance(self.model, FSDPModule):
            self.model.set_is_last_backward(last)
            self.model.set_requires_gradient_sync(last or not self.unsharded)
            self.model.set_reshard_after_backward(last or not self.gathered)
            if self.levels:
                self.model.set_requires_all_reduce(last)
            for guide in self.guides:
                guide.before_micro_batch(last)

    def after_micro_batches(self) -> None:
        """Sums what gradients the backward passes left partial, and lays the parameters back into shards.

        After losses alone, without gradients, those that are held are no partial ones.
        """
        if torch.is_grad_enabled():
            for each in self._buckets():
                each.finish()
            if self.stages is not None:
                self._sum_shared(self.stages)
        self.settle()

    def _buckets(self) -> list[Buckets]:
        if self.partial and not self.buckets:
            groups = {axes: self.world.group(*axes) for axes in sorted(self.partial)}
            self.buckets = [Buckets(self.partial[axes], group, in_memory=self.in_memory) for axes, group in groups.items() if group is not None]
        return self.buckets

    def settle(self) -> None:
        """Parameters back in shards, as they are between steps; a forward pass alone leaves some whole."""
        for root in self.roots:
            for module in root.modules() if isinstance(root, FSDPModule) else ():
                if isinstance(module, FSDPModule):
                    module.reshard()
        for guide in self.guides:
            guide.settle()

    def _sum_shared(self, stages: Pipeline) -> None:
        """Adds up the gradients of parameters that the first and the last stage both hold."""
        shared, ranks = stages.shared()
        if any(p.grad is not None for p in shared):
            Buckets(shared, self.world.pair(ranks)).finish()

    def norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm of the whole gradient, 0-d, the same on every rank."""
        square = torch.zeros((), dtype=torch.float64, device=device.device())
        for holders, gradients in self._by_holders(parameters):
            norms = torch.stack(torch._foreach_norm(gradients)).double()
            square = square.to(norms.device) + norms.square().sum() / holders
        return self.world.sum(square, *AXES).sqrt().float()

    def square(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> float:
        """The sum of squares of tensors that lie as the parameters do, the same on every rank."""
        found = [shards.local(v).double().square().sum() / self._holders(p) for p, v in zip(parameters, values, strict=True)]
        total = torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64, device=device.device())
        return float(self.world.sum(total, *AXES))

    def inner(self, pieces: Sequence[int], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        """The inner product of two lists of tensors over all ranks; for layouts without stages.

        Args:
            pieces: for each, into how many pieces it is cut.
            a, b: this rank's pieces.
        """
        found = [torch.sum(one.double() * other.double()) * count for count, one, other in zip(pieces, a, b, strict=True)]
        total = torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64, device=device.device())
        return float(self.world.sum(total, *AXES)) / self.world.mesh.ranks

    def clip(self, parameters: list[nn.Parameter], limit: float, norm: Tensor) -> None:
        """Scales the gradient so that its norm is at most `limit`."""
        if self.world.alone:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
            return
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        for _, gradients in self._by_holders(parameters):
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))

    @contextmanager
    def at_hand(self) -> Iterator[nn.Module]:
        """A model that this rank can run by itself or together with all others, for measuring and sampling between steps.

        With stages on other ranks it is put together whole on every rank for the while.
        """
        if self.stages is None:
            yield self.model
        else:
            model = copy.deepcopy(self.stages.skeleton)
            fill(model, dict(self.model.named_buffers()) | dict(self.whole()), None)
            yield model
        self.settle()

    def whole(self, gradients: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of the model by name, or its gradient, whole, as one process would hold it; all ranks go through them together.

        With stages the lasting buffers too, of which some are kept by one stage alone.
        """
        owners = {} if self.stages is None else self._owners()
        for name, parameter in self.model.named_parameters():
            value = parameter.grad if gradients else parameter.detach()
            found = None if value is None or value.is_meta else shards.whole(value, self.parts.get(name, ()))
            if self.stages is not None:
                found = self._from_stage(owners[name], parameter, found)
            if found is not None:
                yield name, found
        for name, buffer in self._lasting() if self.stages is not None and not gradients else ():
            yield name, self._from_stage(owners[name], buffer, None if buffer.is_meta else buffer)

    def _from_stage(self, owner: int, like: Tensor, found: Tensor | None) -> Tensor:
        """A tensor that the stages of one rank have, on all."""
        found = torch.zeros(like.shape, dtype=like.dtype, device=device.device()) if found is None else found.contiguous()
        torch.distributed.broadcast(found, group=self.world.group("pipe"), group_src=owner)
        return found

    def _lasting(self) -> list[tuple[str, Tensor]]:
        """The buffers that are saved with a model."""
        lasting = self.model.state_dict(keep_vars=True).keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in lasting]

    def _owners(self) -> dict[str, int]:
        """The first rank along the pipe axis that holds each parameter, and each lasting buffer, by name."""
        every = [*self.model.named_parameters(), *self._lasting()]
        return dict(reversed(self.world.joined([(name, self.world.index("pipe")) for name, value in every if not value.is_meta], "pipe")))

    def merged(self, plain: dict[str, Any]) -> dict[str, Any]:
        """A state's plain values with those of all stages and all that ranks keep alone (train/checkpoint_state.py), on every rank."""
        shared = [rows.pop("apart") for rows in plain["optimizers"]]
        for number, apart in enumerate(shared):
            if apart is not None:
                for other in self.world.joined([apart], "replica", "data", "context", "tensor"):
                    plain["optimizers"][number]["state"] |= other
        if self.stages is None:
            return plain
        order = [name for name, _ in self.model.named_parameters()]
        every = self.world.joined([plain["optimizers"]], "pipe")
        for number, rows in enumerate(plain["optimizers"]):
            rows["state"] = {name: entries for other in every for name, entries in other[number]["state"].items()}
            for place, group in enumerate(rows["groups"]):
                group["parameters"] = sorted({name for other in every for name in other[number]["groups"][place]["parameters"]}, key=order.index)
        return plain

    def _by_holders(self, parameters: Iterable[nn.Parameter]) -> list[tuple[int, list[Tensor]]]:
        found: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                found.setdefault(self._holders(parameter), []).append(shards.local(parameter.grad))
        return sorted(found.items())

    def _holders(self, parameter: nn.Parameter) -> int:
        """How many ranks hold each of its numbers."""
        twice = self.stages is not None and any(parameter is p for p in self.stages.shared()[0])
        return self.world.mesh.ranks // (self.world.mesh.pipe * shards.pieces(parameter)) * (2 if twice else 1)
