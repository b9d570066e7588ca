"""One process's training and the same on a mesh: what tests of layouts compare."""

from __future__ import annotations

from typing import Any

import torch

from bessemer.core import compiler
from bessemer.core.batch import Batch
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.train import optimizers
from bessemer.train.engine import Engine

VOCABULARY, LENGTH = 65, 22
MODEL = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "ffn": 48}
ADAMW = [{"name": "adamw", "lr": 0.01, "eps": 1e-3}]
"""With an epsilon that keeps a rounding error in a gradient near zero from becoming a step of full size."""
MUON = [{"role": "matrix", "name": "muon", "lr": 0.02}, *ADAMW]
STEPS = [[5, 3], [2, 1]]
"""The rows of each micro-batch of each step: with four ranks one has none of the last."""
COMPILED_STEPS = [[2, 1], [1, 2]]
"""The same for compiled blocks, which are compiled anew for every number of rows; with two ranks one has none of the second."""


def batches(rows: list[int], seed: int) -> list[Batch]:
    """Micro-batches of packed documents of ragged lengths; the last row of each is padded, and counts only its tokens."""
    found = []
    for number, count in enumerate(rows):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        tokens = torch.randint(0, VOCABULARY, (count, LENGTH + 1), generator=draw)
        begins = torch.rand(count, LENGTH, generator=draw) < 0.2
        begins[:, 0] = True
        segments = begins.cumsum(1)
        place = torch.arange(LENGTH).expand(count, -1)
        positions = place - torch.where(begins, place, 0).cummax(1).values
        segments[-1, LENGTH - 5 :] = 0
        weights = (segments != 0).float() * (torch.rand(count, LENGTH, generator=draw) < 0.8)
        found.append(Batch(tokens[:, :-1], positions, segments, tokens[:, 1:], {"next_token": weights}, samples=torch.arange(count)))
    return found


def share(batch: Batch, index: int, count: int) -> Batch:
    """One rank's block of rows, as the loader cuts them."""
    return batch.rows_of(batch.rows * index // count, batch.rows * (index + 1) // count)


def train(
    mesh: Mesh,
    parallel: dict[str, Any],
    options: dict[str, Any],
    optim: list[dict[str, Any]],
    objective: str,
    compile: bool,
    steps: list[list[int]] = STEPS,
) -> dict[str, Any]:
    """Two steps on this rank; whole tensors and global figures, the same on every rank."""
    world = World(mesh)
    compiler.fuse(compile)
    if compile:  # or the ranks would run what they can't compile any more, after those of earlier tests
        torch._dynamo.reset()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    model = Decoder(VOCABULARY, 3, **{**MODEL, **options})
    layout = spread(model, world, Parallel(**parallel), compile=compile)
    choices = [choose("optim", each, optimizers.TAGS) for each in optim]
    moving = optimizers.build(model, choices, parameter_roles(model))
    engine = Engine(model, {"text": (choose("objectives", objective)(), 1.0)}, torch.float32, layout)
    found: dict[str, Any] = {}
    for step, rows in enumerate(steps):
        mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in batches(rows, step)]
        result = engine.forward_backward(mine)
        found[f"loss {step}"], found[f"terms {step}"] = result.loss, result.terms
        found[f"gradients {step}"] = {name: value.clone() for name, value in layout.whole(gradients=True)}
        found[f"norm {step}"] = engine.clip(0.5)
        moving.step()
        moving.zero_grad()
        for module in model.modules():
            if hasattr(module, "after_step"):
                module.after_step(None, moving, result.counts)
        found[f"counts {step}"] = {name: count.double() for name, count in result.counts.items()}
        found[f"rows {step}"] = result.rows
    found["weights"] = {name: value.clone() for name, value in layout.whole()} | dict(model.named_buffers())
    return found if world.first else {}
