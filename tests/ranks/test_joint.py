"""Objectives of examples over ranks: contrastive groups spread over ranks give what one process finds on the joined batch, gradients included."""

import pytest
import torch

from bessemer.core.collectives import along
from bessemer.core.mesh import ROWS, Mesh, World
from bessemer.parallel.order import Parallel, spread
from bessemer.train.engine import Engine
from tests.unit.objectives import pictures

NAMES = ["clip", "filip", "m3i", "lejepa", "mae", "simmim", "dmjd", "captioning", "flow_matching"]


def step(name: str, sizes: dict, shard: str) -> dict:
    """Loss, terms and whole gradients of one step of two micro-batches of 8 and 4 rows, in groups of 4."""
    world = World(Mesh.of(sizes))
    model = pictures.decoder()
    objective = pictures.made(name, model)
    objective.ranks = along(world.group(*ROWS))
    layout = spread(model, world, Parallel(shard=shard), compile=False)
    loader = pictures.loader(objective)
    at = {"rank": world.index(*ROWS), "ranks": world.count(*ROWS)}
    batches = [objective.prepare(loader.batch(first, rows, **at), 7) for first, rows in ((0, 8), (8, 4))]
    result = Engine(model, {"mine": (objective, 1.0)}, torch.float32, layout).forward_backward(batches)
    gradients = {key: value.clone() for key, value in layout.whole(gradients=True)}
    return {"loss": result.loss, "terms": result.terms, "gradients": gradients}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sizes", "shard"), [({"data": 2}, "none"), ({"data": 4}, "full"), ({"replica": 2, "data": 2}, "full")], ids=str)
def test_ranks_find_what_one_process_finds(ranks, name, sizes, shard):
    alone = step(name, {}, "none")
    for found in ranks(step, name, sizes, shard, count=Mesh.of(sizes).ranks):
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-6)
        assert found["terms"] == pytest.approx(alone["terms"], rel=1e-4, abs=1e-6)
        for key, value in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][key], value, rtol=1e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")
