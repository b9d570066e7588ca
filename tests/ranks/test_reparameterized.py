"""Reparameterized layers on a mesh: the same as one process, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bessemer.core import compiler, shards
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.package import build, save_model
from bessemer.models.reparameterized import KIND, matrices, merge, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.parallel.together import change
from bessemer.train import optimizers
from bessemer.train.engine import Engine
from tests.ranks.layouts import ADAMW, COMPILED_STEPS, MODEL, STEPS, VOCABULARY, batches, share

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
EXPERTS = {"experts": {"count": 4, "active": 2, "ffn": 24, "bias": 0.0}}
CASES: list[tuple[dict[str, int], str, dict[str, Any], dict[str, Any]]] = [
    (mesh, shard, {"name": name, **options}, {}) for mesh, shard in MESHES for name, options in METHODS.items()
]
CASES += [({"pipe": 2}, "full", {"name": "lora", "rank": 4, "match": "blocks.0.*"}, {})]  # nothing trains on the last stage
CASES += [({"tensor": 2, "expert": 2}, "full", {"name": name, **METHODS[name]}, EXPERTS) for name in ("lora", "relora", "sltrain")]
CASES += [({"data": 4, "expert": 2}, "full", {"name": "lora", "rank": 4}, EXPERTS)]


def train(
    mesh: dict[str, int],
    shard: str,
    adapt: dict[str, Any],
    options: dict[str, Any],
    folder: Path,
    steps: list[list[int]] = STEPS,
    compile: bool = False,
) -> dict[str, Any]:
    """Four steps on this rank, and the model's package in `folder`; losses, gradient norms and whole weights."""
    world = World(Mesh.of(mesh))
    compiler.fuse(compile)
    if compile:
        torch._dynamo.reset()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    model = reparameterize(Decoder(VOCABULARY, 3, **{**MODEL, **options}), choose(KIND, adapt), 1)
    layout = spread(model, world, Parallel(shard=shard), compile=compile)
    moving = optimizers.build(model, [choose("optim", each, optimizers.TAGS) for each in ADAMW], parameter_roles(model))
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    figures = []
    for step in range(4):
        rows = batches(steps[step % len(steps)], step)
        result = engine.forward_backward([share(b, world.index("replica", "data"), world.count("replica", "data")) for b in rows])
        figures += [result.loss, engine.clip(0.5)]
        moving.step()
        change(model, Progress(step=step, steps=4), moving, result.counts)
        moving.zero_grad()
    cut = [matrix for name, module in model.named_modules() if not name.endswith("router.gate") for matrix in getattr(module, "matrices", [])]
    here = [matrix for matrix in cut if not any(p.is_meta for p in matrix.parameters())]
    assert here or "match" in adapt
    assert all(any(shards.pieces(p) >= world.count("tensor") for p in matrix.parameters()) for matrix in here)
    whole = {name: value.clone() for name, value in layout.whole()}
    if world.first:
        save_model(model, folder, whole=whole)
    return {"figures": figures, "weights": dict(model.named_buffers()) | whole}


def refused(mesh: dict[str, int], adapt: dict[str, Any]) -> str:
    try:
        spread(reparameterize(Decoder(VOCABULARY, 3, **MODEL), choose(KIND, adapt), 1), World(Mesh(**mesh)), Parallel())
    except RecipeError as error:
        return str(error)
    return "not refused"


def near(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        apart = (got[name] - value).double().norm() / value.double().norm().clamp(min=1e-12)
        assert apart <= 1e-3, f"{name}: {apart:.1e}"


@pytest.mark.parametrize(("mesh", "shard", "adapt", "options"), CASES, ids=str)
def test_trains_as_one_process_does_and_merges_to_the_same(ranks, tmp_path, mesh, shard, adapt, options):
    got = ranks(train, mesh, shard, adapt, options, tmp_path / "got", count=Mesh.of(mesh).ranks)[0]
    alone = train({}, "none", adapt, options, tmp_path / "alone")
    assert got["figures"][:4] == pytest.approx(alone["figures"][:4], rel=1e-5)
    assert got["figures"] == pytest.approx(alone["figures"], rel=1e-3)  # factors that begin at zero make much of a rounding error
    near(got["weights"], alone["weights"])
    merged, expected = (merge(build(tmp_path / one)) for one in ("got", "alone"))
    assert not matrices(merged)
    near(merged.state_dict(), expected.state_dict())


def test_many_adapted_blocks_are_compiled_as_one(ranks, tmp_path):
    """Past torch's limit of eight the rest would run uncompiled, which is an error here."""
    adapt, options, steps = {"name": "lora", "rank": 4}, {"depth": 10}, COMPILED_STEPS[:1]
    got = ranks(train, {"tensor": 2}, "none", adapt, options, tmp_path / "got", steps, True, count=2)[0]
    alone = train({}, "none", adapt, options, tmp_path / "alone", steps)
    assert got["figures"] == pytest.approx(alone["figures"], rel=1e-3)
    near(got["weights"], alone["weights"])


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
