"""Where a pipeline's stages begin: such that the costliest costs least, embedding and head counted with the first and the last.

Costs are counted, in floating point operations of a token, the same on every machine; or measured, in seconds of this one's forward and
backward passes, by rank 0 for all. What counting can't see (norms, the softmax over the vocabulary, gradients of the embedding, a
device's preferences) measuring does. Stages may hold different numbers of blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bessemer.core import device
from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World
from bessemer.models.layers.experts import mixtures

Cuts = Literal["counted", "measured"] | list[int]
COLUMNS, REPEATS = 512, 3


class Costs(NamedTuple):
    """What a step spends on each part of a model, in one unit.

    Attributes:
        first: embedding.
        blocks: each block.
        last: final norm, head, and modules that look further ahead.
    """

    first: float
    blocks: list[float]
    last: float


def begins(model: Any, world: World, stages: int, cuts: Cuts, again: bool, dtype: torch.dtype) -> list[int]:
    """The first block of each stage, and the number of blocks.

    Args:
        again: whether blocks compute their forward pass a second time.
        dtype: what matrix products are computed in.

    Raises:
        RecipeError: the blocks can't fill so many stages, or not in this way.
    """
    if isinstance(cuts, list):
        return given(len(model.blocks), stages, cuts)
    fake = not world.alone and dist.get_backend() == "fake"  # a dry run has no time to measure
    return first_blocks(counted(model, again) if cuts == "counted" or fake else measured(model, world, again, dtype), stages)


def counted(model: Any, again: bool) -> Costs:
    """Floating point operations of a token in a row of the model's length."""
    blocks, last = model.flops_by_part(model.options["length"])
    return Costs(0.0, [flops * (4 / 3 if again else 1.0) for flops in blocks], last)


def measured(model: Any, world: World, again: bool, dtype: torch.dtype) -> Costs:
    """Seconds of one row, on rank 0, blocks of the same shape measured once; the same on every rank, which all call this."""
    length = min(model.options["length"], COLUMNS)
    found = torch.zeros(len(model.blocks) + 2, dtype=torch.float64, device=device.device())
    if world.first:
        with torch.autocast(device.device().type, dtype=dtype, enabled=dtype != torch.float32):
            found += torch.tensor(_seconds(model, length, again), dtype=torch.float64, device=device.device())
    if not world.alone:
        dist.broadcast(found, src=0)
    first, *blocks, last = found.tolist()
    return Costs(first, blocks, last)


def _seconds(model: Any, length: int, again: bool) -> list[float]:
    where = device.device()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocabulary, (1, length), generator=draw).to(where)
    hidden = torch.randn(1, length, model.options["width"], generator=draw).to(where).requires_grad_()
    full, near = model.contexts(Batch(tokens, torch.arange(length, device=where)[None]))
    known: dict[Any, float] = {}

    def block(part: nn.Module, windowed: bool) -> float:
        key = (windowed, *((name, tuple(p.shape)) for name, p in part.named_parameters()))
        if key not in known:
            known[key] = _timed(lambda: part(hidden, near if windowed else full, None), [hidden, *part.parameters()], 2 if again else 1)
        return known[key]

    def head() -> Tensor:
        return model.head(model.norm(hidden)).float().logsumexp(-1)

    def parameters(*parts: nn.Module) -> list[Tensor]:
        return [p for part in parts for p in part.parameters()]

    first = _timed(lambda: model.embed(tokens), parameters(model.embed))
    blocks = [block(part, windowed) for part, windowed in zip(model.blocks, model.windowed, strict=True)]
    last = _timed(head, [hidden, *parameters(model.norm, model.head)])
    last += sum(block(module.block, False) + last for module in model.ahead)
    for layer in mixtures(model).values():
        layer.seen = None
    return [first, *blocks, last]


def _timed(forward: Callable[[], Tensor], inputs: list[Tensor], forwards: int = 1) -> float:
    """The least seconds of a forward pass, taken so many times, and a backward pass."""
    trained = [each for each in inputs if each.requires_grad]
    best = float("inf")
    for _ in range(1 + REPEATS):
        device.synchronise()
        begin = time.perf_counter()
        found = forward()
        device.synchronise()
        middle = time.perf_counter()
        if trained:
            torch.autograd.grad(found, trained, torch.ones_like(found), allow_unused=True)
        device.synchronise()
        best = min(best, (middle - begin) * forwards + time.perf_counter() - middle)
    return best


def first_blocks(costs: Costs, stages: int) -> list[int]:
    """As `begins`, by costs.

    Raises:
        RecipeError: there are fewer blocks than stages.
    """
    each = list(costs.blocks)
    if len(each) < stages:
        problem = f"{len(each)} blocks can't fill {stages} stages"
        raise RecipeError(problem, key="mesh.pipe", mend="use fewer stages or a schedule with one stage a rank, or a deeper model")
    each[0] += costs.first
    each[-1] += costs.last
    best: dict[tuple[int, int], tuple[float, float, int]] = {(0, 0): (0.0, 0.0, 0)}  # costliest, sum of squares: among equals the evenest
    for stage in range(1, stages + 1):
        for end in range(stage, len(each) + 1):
            choices = []
            for start in (start for start in range(stage - 1, end) if (stage - 1, start) in best):
                most, squares, _ = best[stage - 1, start]
                here = sum(each[start:end])
                choices.append((max(most, here), squares + here**2, start))
            best[stage, end] = min(choices)
    cuts = [len(each)]
    for stage in range(stages, 0, -1):
        cuts.insert(0, best[stage, cuts[0]][2])
    return cuts


def given(blocks: int, stages: int, inner: list[int]) -> list[int]:
    """As `begins`, where a recipe says with which block each stage but the first begins.

    Raises:
        RecipeError: it does not say so for so many blocks and stages.
    """
    cuts = [0, *inner, blocks]
    if len(inner) != stages - 1 or any(stop <= start for start, stop in pairwise(cuts)):
        problem = f"{inner} doesn't begin {stages - 1} further stages of {blocks} blocks"
        raise RecipeError(problem, key="parallel.cuts", mend=f"give {stages - 1} ascending numbers from 1 to {blocks - 1}")
    return cuts
