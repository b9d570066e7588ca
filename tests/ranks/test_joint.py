"""Every objective over ranks: what it finds, gradients included, is what one process finds on the joined batch, or a mesh is refused in words."""

from dataclasses import replace

import pytest
import torch

from bessemer.core import registry
from bessemer.core.collectives import along
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import ROWS, Mesh, World
from bessemer.models.attach import attach
from bessemer.objectives._examples import FromExamples
from bessemer.parallel.order import Parallel, spread
from bessemer.train.engine import Engine
from tests.contract.test_objectives import ragged
from tests.unit.objectives import pictures, words

PICTURES = [name for name in registry.names("objectives") if issubclass(registry.find("objectives", name), FromExamples)]
TEXT = [name for name in registry.names("objectives") if name not in PICTURES]
PARTS = ((0, 8), (8, 4))
"""First row and rows of each micro-batch."""
OPTIONS = {"electra": {"width": 64}}
"""For a generator with a head for each of two ranks."""


def task(name: str, model, rank: int, ranks: int) -> tuple:
    """An objective attached to the model, and this rank's rows of two micro-batches, as a loader gives them."""
    if name in PICTURES:
        objective = pictures.made(name, model)
        loader = pictures.loader(objective)
        return objective, [loader.batch(first, rows, rank=rank, ranks=ranks) for first, rows in PARTS]
    objective = attach(model, "mine", registry.choose("objectives", {"name": name, **words.options(name), **OPTIONS.get(name, {})}))
    objective.read(words.Words())
    whole = replace(words.dressed(name, ragged(12)), task="mine")
    return objective, [whole.rows_of(first + rows * rank // ranks, first + rows * (rank + 1) // ranks) for first, rows in PARTS]


def step(name: str, sizes: dict, shard: str) -> dict:
    """Loss, terms and whole gradients of one step; what it says that refuses the mesh."""
    world = World(Mesh.of(sizes))
    model = pictures.decoder(ahead=2 if name == "multi_token" else 0)
    objective, raw = task(name, model, world.index(*ROWS), world.count(*ROWS))
    objective.ranks = along(world.group(*ROWS))
    try:
        layout = spread(model, world, Parallel(shard=shard), compile=False)
        result = Engine(model, {"mine": (objective, 1.0)}, torch.float32, layout).forward_backward([objective.prepare(batch, 7) for batch in raw])
    except RecipeError as error:
        return {"refused": error.problem}
    gradients = {key: value.clone() for key, value in layout.whole(gradients=True)}
    return {"loss": result.loss, "terms": result.terms, "gradients": gradients}


def assert_same(found: dict, alone: dict) -> None:
    assert found["gradients"].keys() >= alone["gradients"].keys()
    assert not any(value.any() for key, value in found["gradients"].items() if key not in alone["gradients"]), "a gradient where one process has none"
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-6)
    assert found["terms"] == pytest.approx(alone["terms"], rel=1e-4, abs=1e-6)
    for key, value in alone["gradients"].items():
        torch.testing.assert_close(found["gradients"][key], value, rtol=1e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("sizes", "shard"), [({"data": 2}, "none"), ({"data": 4}, "full"), ({"replica": 2, "data": 2}, "full"), ({"tensor": 2}, "none")], ids=str
)
def test_ranks_find_what_one_process_finds(ranks, name, sizes, shard):
    alone = step(name, {}, "none")
    for found in ranks(step, name, sizes, shard, count=Mesh.of(sizes).ranks):
        assert_same(found, alone)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(("sizes", "shard"), [({"data": 2}, "full"), ({"tensor": 2}, "none"), ({"tensor": 2, "data": 2}, "full")], ids=str)
def test_text_is_learned_as_by_one_process(ranks, name, sizes, shard):
    alone = step(name, {}, "none")
    for found in ranks(step, name, sizes, shard, count=Mesh.of(sizes).ranks):
        assert_same(found, alone)


@pytest.mark.parametrize("name", [*TEXT, "mae"])
@pytest.mark.parametrize("sizes", [{"context": 2}, {"pipe": 2}], ids=str)
def test_shared_columns_and_stages_do_the_same_or_are_refused(ranks, name, sizes):
    alone, refused = step(name, {}, "none"), REFUSED.get((name, *sizes))
    for found in ranks(step, name, sizes, "none", count=2):
        if refused:
            assert refused in found["refused"]
        else:
            assert_same(found, alone)


REFUSED = {
    ("electra", "pipe"): "reads the batch before the trunk does",
    ("mae", "context"): "columns",
}
"""Objective and axis that can't be had together, and what is said of it."""
