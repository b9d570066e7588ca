"""Three levels of sharing out: what crosses nodes doesn't grow with micro-batches, and each level holds its share. Equality: test_layouts.py."""

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.parallel import data
from bessemer.parallel.order import Parallel, spread
from bessemer.plan.traffic import Listener
from bessemer.train.engine import Engine
from tests.ranks.layouts import MODEL, VOCABULARY, batches, share


def step(micro_batches: int) -> dict[str, Any]:
    """A step of 8 ranks in pairs and nodes of 4; bytes sent by group, and what is held before the last micro-batch."""
    world = World(Mesh(data=8))
    model = Decoder(VOCABULARY, 3, **MODEL)
    size = sum(p.nbytes for p in model.parameters())
    layout = spread(model, world, Parallel(shard="levels", pair=2, node=4))
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    held: list[tuple[int, int]] = []
    before = layout.before_micro_batch

    def note(last: bool) -> None:
        parts = layout.levels[0].parts
        held.append(tuple(sum(each.held.nbytes for each in kind if each.held is not None) for kind in zip(*parts, strict=True)))
        before(last)

    layout.before_micro_batch = note
    with Listener(world) as listener:
        engine.forward_backward([share(batch, world.index("data"), 8) for batch in batches([8] * micro_batches, 0)])
    sent = {row.axes: row.bytes for row in listener.traffic()}
    left = [each for part in layout.levels[0].parts for each in part if each.held is not None]
    return {"sent": sent, "size": size, "held": held, "left": len(left)}


def test_parameters_and_gradients_cross_nodes_once_a_step(ranks):
    one, four = ranks(step, 1, count=8)[0], ranks(step, 4, count=8)[0]
    size = one["size"]
    padded = pytest.approx(size, rel=0.1)  # small tensors don't divide evenly
    for found in (one, four):
        assert found["sent"]["shard pairs"] / (3 / 4) * 2 == padded  # half of the parameters, gathered over four pairs
        assert found["sent"]["shard nodes"] / (1 / 2) * 4 == padded  # a quarter of the gradients, scattered over two nodes
        assert found["left"] == 0
    assert four["sent"]["shard node"] == 4 * one["sent"]["shard node"]  # gradients over a node after each micro-batch
    assert four["sent"]["shard pair"] > 3.9 * one["sent"]["shard pair"]  # parameters inside a pair, forward and backward
    assert one["held"] == [(0, 0)]
    assert four["held"][0] == (0, 0)
    for parameters, gradients in four["held"][1:]:
        assert parameters * 2 == padded
        assert gradients * 4 == padded


@pytest.mark.parametrize(("pair", "node", "key"), [(3, 8, "parallel.pair"), (2, 6, "parallel.node")])
def test_sets_that_do_not_divide_are_refused(ranks, pair, node, key):
    assert ranks(refused, pair, node, count=4) == [key] * 4


def refused(pair: int, node: int) -> str | None:
    """The key that is complained of."""
    try:
        spread(Decoder(VOCABULARY, 3, **MODEL), World(Mesh(data=4)), Parallel(shard="levels", pair=pair, node=node))
    except RecipeError as error:
        return error.key
    return None


def held() -> list[bool]:
    """Whether this rank has whole parameters where a quarter of its memory is just enough, and where it is just too little."""
    model = Decoder(VOCABULARY, 3, **MODEL)
    need = 4 * data.STATE_BYTES * sum(p.numel() for p in model.parameters())
    found = []
    for room in (need, need - 64):
        world = World(Mesh(data=2))
        world.agree = lambda _, room=room: float(room)
        model = Decoder(VOCABULARY, 3, **MODEL)
        layout = spread(model, world, Parallel(shard="auto"))
        found.append(bool(layout.partial) and not any(isinstance(p, DTensor) for p in model.parameters()))
    return found


def test_small_models_are_kept_whole(ranks):
    assert ranks(held, count=2) == [[True, False]] * 2


def mixed(shard: str) -> str:
    """What is said of a step whose micro-batches use different parameters."""
    world = World(Mesh(data=2))
    model = Decoder(VOCABULARY, 3, **MODEL)
    objectives = {task: (attach(model, task, choose("objectives", name)), 1.0) for task, name in (("a", "next_token"), ("b", "position_prediction"))}
    layout = spread(model, world, Parallel(shard=shard, pair=1, node=2))
    made = batches([2, 2], 0)
    for batch, task in zip(made, objectives, strict=True):
        batch.task = task
    mine = [share(objectives[batch.task][0].prepare(batch, 7), world.index("data"), 2) for batch in made]
    try:
        Engine(model, objectives, torch.float32, layout).forward_backward(mine)
    except RecipeError as error:
        return error.problem
    return ""


def test_micro_batches_of_different_parameters_are_refused(ranks):
    assert all("different parameters" in said for said in ranks(mixed, "levels", count=2))
    assert ranks(mixed, "full", count=2) == ["", ""]
