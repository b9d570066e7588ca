"""One step of one rank, in the order of train/engine.py, for what it holds and sends."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.fsdp import FSDPModule

from bessemer.core import device
from bessemer.core.batch import Batch, Outputs
from bessemer.objectives._objective import Objective
from bessemer.parallel.layout import Layout
from bessemer.parallel.pipeline import Pipeline
from bessemer.plan.held import Held

if TYPE_CHECKING:
    from bessemer.plan.dry import Plan


def take(plan: Plan, objectives: Mapping[str, Objective], layout: Layout, batches: Sequence[Batch], helds: Sequence[Held]) -> None:
    """Forward and backward over micro-batches, and the gradient's norm.

    Args:
        objectives: by task.
        helds: one for each of the layout's roots; counts what its first forward pass keeps.
    """

    def value(number: int, batch: Batch, outputs: Outputs, last: bool = True) -> Tensor:
        terms = objectives[batch.task](outputs, outputs.batch or batch) if last else type(outputs.terms)()
        terms.terms |= outputs.terms.terms
        sums = [term.sum.float() * term.scale for _, term in terms if term.scale]
        return torch.stack(sums).sum() if sums else torch.zeros((), device=outputs.hidden.device)

    with torch.autocast(device.device().type, dtype=plan.dtype, enabled=plan.dtype != torch.float32):
        with unset_fake_temporarily():
            given = [layout.given(batch, objectives[batch.task]) for batch in batches]
        if layout.stages is not None:
            _through(layout.stages, given, helds, value)
        for number, each in enumerate(given if layout.stages is None else [], start=1):
            layout.before_micro_batch(last=number == len(batches))
            with helds[0]:
                loss = value(number, each, layout.model(each))
            loss.backward()
    layout.after_micro_batches()
    layout.norm([p for p in layout.model.parameters() if p.requires_grad and not p.is_meta])


def _through(stages: Pipeline, batches: list[Batch], helds: Sequence[Held], value: Any) -> None:
    """Each micro-batch through this rank's stages, each stage for itself: no schedule, and nothing is sent to other stages."""
    stages.batches, stages.value = batches, value
    for stage in stages.stages:
        if isinstance(stage, FSDPModule):
            stage.unshard()
    for number, each in enumerate(batches):
        last = number == len(batches) - 1
        for stage, held in zip(stages.stages, helds, strict=True):
            module: Any = stage
            if isinstance(module, FSDPModule):  # as torch's schedules do it
                module.set_is_last_backward(last)
                module.set_reshard_after_backward(last)
                module.set_requires_gradient_sync(last)
            passed = [] if stage.first else _passed(stages, each)
            with held, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # which nobody writes to
                found = module(*passed, number=number)
            sums = [part.float().sum() for part in (found if isinstance(found, tuple) else (found,))]
            torch.stack(sums).sum().backward()


def _passed(stages: Pipeline, batch: Batch) -> list[Tensor]:
    """What arrives from the stage before."""
    rows, columns = batch.tokens.shape
    hidden = torch.zeros(rows, columns, stages.model.options["width"], device=device.device(), requires_grad=True)
    return [hidden, torch.zeros(1, device=device.device(), requires_grad=True)] if stages.wide else [hidden]


def under_way(plan: Plan, stages: Pipeline, batch: Batch, count: int, kept: Sequence[float]) -> list[float]:
    """The most that activations come to at each place along the pipe axis, by the order of torch's schedule, if its stages keep `kept` each."""
    rows, columns = batch.tokens.shape
    if plan.parallel.pipe in ("gpipe", "1f1b"):
        most = [count if plan.parallel.pipe == "gpipe" else min(count, stages.ranks - place) for place in range(stages.ranks)]
        return [each * kept[0] for each in most]
    order = stages._schedule(rows, columns // plan.mesh.context, count).pipeline_order
    return [_most(order[place], stages, kept) for place in range(stages.ranks)]


def _most(actions: Sequence[Any], stages: Pipeline, kept: Sequence[float]) -> float:
    """The most that is kept at once; a backward pass in two parts lets go after the second."""
    now = most = 0.0
    for action in actions:
        for each in () if action is None else action.sub_actions or (action,):
            kind, size = each.computation_type.value, kept[each.stage_index // stages.ranks]
            now += size if kind == "F" else -size if kind in ("B", "W") else 0.0
            most = max(most, now)
    return most
