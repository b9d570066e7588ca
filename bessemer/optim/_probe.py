"""What a method may ask of the engine between the backward pass and the update: losses and gradients of this step's rows, elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bessemer.core import collectives, device, rng, shards
from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.progress import Progress

RANKS = ("replica", "data", "context")
"""The axes along which ranks hold different tokens."""


class Probe:
    """This step's batches with the engine that runs them; every question is asked of the weights as they then stand.

    Args:
        engine: runs micro-batches: `forward_backward(batches)` with a `loss`, and a `model`, `dtype`, `layout` and `count`.
        batches: the step's micro-batches.
        progress: where the run stands.
    """

    def __init__(self, engine: Any, batches: Sequence[Batch], progress: Progress) -> None:
        self.engine, self.batches, self.progress = engine, list(batches), progress

    @property
    def model(self) -> nn.Module:
        return self.engine.model

    def loss(self, batches: Sequence[Batch] | None = None) -> float:
        """The loss of some batches, this step's if none are given."""
        with torch.no_grad():
            return self.engine.forward_backward(self.batches if batches is None else batches).loss

    def gradients(self, parameters: Sequence[Tensor], batches: Sequence[Batch] | None = None) -> list[Tensor]:
        """The loss's gradient; what the parameters hold in `.grad` stays as it is."""
        held = [(p, p.grad) for p in self.model.parameters()]
        for parameter, _ in held:
            parameter.grad = None
        try:
            self.engine.forward_backward(self.batches if batches is None else batches)
            return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Differences of losses and gradients inside are taken in float32, whatever the run computes in."""
        before = self.engine.dtype
        self.engine.dtype = torch.float32
        try:
            yield
        finally:
            self.engine.dtype = before

    def total(self, values: Tensor) -> Tensor:
        """The sum over the ranks that hold other tokens, in place."""
        return self.engine.layout.world.sum(values, *RANKS)

    def largest(self, values: Tensor) -> Tensor:
        """The largest values over all ranks, in place."""
        group = self.engine.layout.world.group(*RANKS)
        if group is not None:
            torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
        return values

    def every(self, values: Tensor) -> Tensor:
        """The values of all ranks that share a layer's heads, in their order: [heads here, ...] to [heads, ...]."""
        return collectives.whole(values, 0, collectives.along(self.engine.layout.world.group("tensor")))

    def some(self, share: float) -> list[Batch]:
        """The first micro-batches, about `share` of them and at least one."""
        return self.batches[: max(1, round(share * len(self.batches)))]

    def redrawn(self, batches: Sequence[Batch], seed: int) -> tuple[list[Batch], float]:
        """Batches whose targets are drawn from the model's own predictions, and how many labels that makes.

        Draws are keyed by the seed, the step and each row's sample.

        Raises:
            RecipeError: no batch has targets.
        """
        layout = self.engine.layout
        if layout.columns is not None or layout.stages is not None:
            raise RecipeError(
                "labels are drawn by ranks that see whole rows and the model's end, and this run cuts rows or the model",
                key="optim",
                mend="estimate = 'hutchinson', or mesh.context = 1 and mesh.pipe = 1",
            )
        drawn, (labels, tokens) = [], torch.zeros(2, dtype=torch.float64, device=device.device())
        for batch in batches:
            if batch.targets is None:
                continue
            here = batch.to(device.device())
            with torch.no_grad(), self.engine.precision(), torch.compiler.set_stance("force_eager"):
                given = here if here.rows else here.blank()  # ranks without rows take part in gathering parameters
                objective = self.engine.objectives[batch.task][0]
                outputs = self.engine.model(replace(given, first=objective.before) if objective.acts_before else given)
                rows = [self._draw(outputs.head(outputs.hidden[row]), here, row, seed) for row in range(here.rows)]
            self.engine.layout.settle()  # a forward pass alone leaves parameters whole, and whole ones have other gradients
            tokens += here.tokens.numel()
            drawn.append(replace(here, targets=torch.stack(rows) if rows else here.targets))
            counted = [stream for stream in here.weights.values() if stream.shape == here.tokens.shape]
            labels += torch.stack([stream > 0 for stream in counted]).any(0).sum() if counted else here.tokens.numel()
        if not drawn:
            raise RecipeError(
                "labels are to be drawn from the model's predictions, and no task predicts tokens", key="optim", mend="estimate = 'hutchinson'"
            )
        self.engine.count(float(self.total(tokens)), backward=False)
        return drawn, float(self.total(labels))

    def _draw(self, logits: Tensor, batch: Batch, row: int, seed: int) -> Tensor:
        sample = int(batch.samples[row]) if batch.samples is not None else row
        uniform = torch.rand(logits.shape[0], 1, generator=rng.generator(seed, "labels", self.progress.step, sample)).to(logits.device)
        mass = logits.float().softmax(-1).cumsum(-1)
        return torch.searchsorted(mass, uniform * mass[:, -1:]).clamp_(max=logits.shape[-1] - 1)[:, 0]

    @contextmanager
    def reusing(self) -> Iterator[Reuse]:
        """Records what every block gives for these batches, so that later losses need only the blocks after a change."""
        reuse = Reuse(self)
        with torch.compiler.set_stance("force_eager"):
            try:
                reuse.record()
                yield reuse
            finally:
                reuse.forget()


class Reuse:
    """Losses of batches whose earlier blocks are known already (Chen et al. 2023, DeepZero: feature reuse)."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.blocks = list(getattr(probe.model, "blocks", []))
        self.kept: list[list[Any]] = [[] for _ in self.blocks]
        self.first, self.calls, self.base = 0, [0] * len(self.blocks), 0.0

    def record(self) -> None:
        """One pass that keeps the blocks' outputs."""
        for number, block in enumerate(self.blocks):
            block.forward = self._recording(number, block.forward)
        self.base = self.probe.loss()
        self.forget()
        for number, block in enumerate(self.blocks):
            block.forward = self._replaying(number, block.forward)
        if self.loss(len(self.blocks)) != self.base:  # blocks that say more than they return can't be skipped
            self.blocks, self.kept = self.blocks[:0], []

    def forget(self) -> None:
        """The blocks are as they were."""
        for block in getattr(self.probe.model, "blocks", []):
            block.__dict__.pop("forward", None)

    def loss(self, first: int) -> float:
        """The loss when nothing before block `first` has changed since the recording."""
        self.first, self.calls = min(first, len(self.blocks)), [0] * len(self.calls)
        return self.probe.loss()

    def first_after(self, name: str) -> int:
        """The first block whose output a change of the parameter `name` reaches; their number, if none."""
        found = re.match(r"blocks\.(\d+)\.", name)
        if found:
            return int(found.group(1))
        return len(self.blocks) if name.startswith(("norm.", "head.")) else 0

    def _recording(self, number: int, forward: Any) -> Any:
        def record(*inputs: Any, **more: Any) -> Any:
            self.kept[number].append(forward(*inputs, **more))
            return self.kept[number][-1]

        return record

    def _replaying(self, number: int, forward: Any) -> Any:
        def replay(*inputs: Any, **more: Any) -> Any:
            self.calls[number] += 1
            return self.kept[number][self.calls[number] - 1] if number < self.first else forward(*inputs, **more)

        return replay


def laid_out(whole: Tensor, like: Tensor, parts: Sequence[int] = ()) -> Tensor:
    """This rank's part of a tensor that every rank has whole, cut as a parameter is; the tensor itself where that is whole.

    Args:
        whole: of the parameter's shape.
        parts: rows of the matrices stacked in the parameter, if tensor parallelism cuts them apart.
    """
    if not isinstance(like, DTensor):
        return whole
    here = like.device_mesh.get_coordinate()
    assert here is not None
    piece = whole[shards.grid(shards.place(like, here, parts))]
    return DTensor.from_local(piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


@contextmanager
def weights(values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """The parameters have these values inside, and after it their own again, bit by bit."""
    held = [(parameter, parameter.detach().clone()) for parameter in values]
    try:
        with torch.no_grad():
            for parameter, value in values.items():
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in held:
                parameter.copy_(before)
