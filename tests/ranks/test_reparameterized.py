"""Reparameterized layers on a mesh: the same as one process, or refused in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bessemer.core import shards
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.reparameterized import KIND, matrices, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.parallel.together import change
from bessemer.train import optimizers
from bessemer.train.engine import Engine
from tests.ranks.layouts import ADAMW, MODEL, STEPS, VOCABULARY, batches, share

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "pissa": {"rank": 4},
    "bone": {"rank": 4},
    "ssf": {},
    "sltrain": {"rank": 4},
    "lost": {"rank": 4},
    "relora": {"rank": 4, "every": 2, "prune": 0.5},
    "switch_lora": {"rank": 4, "interval": 2.0, "hold": 2},
    "sparse_spectral": {"rank": 4, "every": 2},
    "refactorize": {"rank": 4, "every": 2},
}
MESHES: list[tuple[dict[str, int], str]] = [
    ({"data": 2}, "full"),
    ({"context": 2}, "grad"),
    ({"data": 2, "tensor": 2}, "full"),
    ({"tensor": 2, "pipe": 2}, "full"),
]
CASES = [(mesh, shard, {"name": name, **options}) for mesh, shard in MESHES for name, options in METHODS.items()]
CASES += [({"pipe": 2}, "full", {"name": "lora", "rank": 4, "match": "blocks.0.*"})]  # nothing trains on the last stage


def train(mesh: dict[str, int], shard: str, adapt: dict[str, Any]) -> dict[str, Any]:
    """Four steps on this rank; losses, gradient norms and whole weights."""
    world = World(Mesh(**mesh))
    model = reparameterize(Decoder(VOCABULARY, 3, **MODEL), choose(KIND, adapt), 1)
    layout = spread(model, world, Parallel(shard=shard))
    moving = optimizers.build(model, [choose("optim", each, optimizers.TAGS) for each in ADAMW], parameter_roles(model))
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    figures = []
    for step in range(4):
        rows = batches(STEPS[step % len(STEPS)], step)
        result = engine.forward_backward([share(b, world.index("replica", "data"), world.count("replica", "data")) for b in rows])
        figures += [result.loss, engine.clip(0.5)]
        moving.step()
        change(model, Progress(step=step, steps=4), moving, result.counts)
        moving.zero_grad()
    here = [matrix for matrix in matrices(model) if not any(p.is_meta for p in matrix.parameters())]
    assert here or "match" in adapt
    assert all(any(shards.pieces(p) >= world.count("tensor") for p in matrix.parameters()) for matrix in here)
    return {"figures": figures, "weights": dict(model.named_buffers()) | {name: value.clone() for name, value in layout.whole()}}


def refused(mesh: dict[str, int], adapt: dict[str, Any]) -> str:
    try:
        spread(reparameterize(Decoder(VOCABULARY, 3, **MODEL), choose(KIND, adapt), 1), World(Mesh(**mesh)), Parallel())
    except RecipeError as error:
        return str(error)
    return "not refused"


@pytest.mark.parametrize(("mesh", "shard", "adapt"), CASES, ids=str)
def test_trains_as_one_process_does(ranks, mesh, shard, adapt):
    got, alone = ranks(train, mesh, shard, adapt, count=math.prod(mesh.values()))[0], train({}, "none", adapt)
    assert got["figures"][:4] == pytest.approx(alone["figures"][:4], rel=1e-5)
    assert got["figures"] == pytest.approx(alone["figures"], rel=1e-3)  # factors that begin at zero make much of a rounding error
    assert got["weights"].keys() == alone["weights"].keys()
    for name, value in alone["weights"].items():
        apart = (got["weights"][name] - value).double().norm() / value.double().norm().clamp(min=1e-12)
        assert apart <= 1e-3, f"{name}: {apart:.1e}"


@pytest.mark.parametrize(
    ("axis", "adapt", "said"),
    [
        ("tensor", {"name": "bone", "rank": 5}, "blocks of 5 don't divide"),
        ("tensor", {"name": "lora", "rank": 4, "match": ["blocks.*", "head"]}, "ranks can't share its vocabulary"),
        ("pipe", {"name": "lora", "rank": 4, "match": "blocks.1.*"}, "nothing trains on the first stage"),
    ],
)
def test_what_a_mesh_would_break_is_refused(ranks, axis, adapt, said):
    assert all(said in each for each in ranks(refused, {axis: 2}, adapt, count=2))
