"""Tasks balanced on ranks that hold pieces of their gradients are balanced as on one process; what can't be is refused."""

from typing import Any

import pytest
import torch

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.parallel.order import Parallel, spread
from bessemer.train.balanced import Balanced
from tests.ranks.layouts import MODEL, VOCABULARY, batches, share

TASKS = {"text": "next_token", "place": "position_prediction"}


def steps(mesh: dict[str, int], parallel: dict[str, Any], balance: str) -> dict[str, Any]:
    """Two steps of two tasks that conflict; gradients and what the method remembers."""
    world = World(Mesh.of(mesh))
    model = Decoder(VOCABULARY, 3, **MODEL)
    objectives = {task: (attach(model, task, choose("objectives", name)), 0.5 + number) for number, (task, name) in enumerate(TASKS.items())}
    layout = spread(model, world, Parallel(**parallel))
    try:
        engine = Balanced(model, objectives, torch.float32, choose("train/balance", balance), layout)
    except RecipeError as error:
        return {"refused": error.problem}
    found: dict[str, Any] = {}
    for number in range(2):
        made = batches([3, 3], number)
        for batch, task in zip(made, TASKS, strict=True):
            batch.task = task
        made = [objectives[batch.task][0].prepare(batch, 7) for batch in made]
        mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in made]
        model.zero_grad()
        found["loss"] = engine.forward_backward(mine).loss
        found["norm"] = engine.clip(0.3)
    found["gradients"] = {name: value.clone() for name, value in layout.whole(gradients=True)}
    return found | {"state": engine.state()}


@pytest.mark.parametrize("balance", ["gradient_norm", "projection", "uncertainty"])
@pytest.mark.parametrize(
    ("mesh", "parallel"),
    [({"data": 2}, {}), ({"replica": 2, "tensor": 2}, {"shard": "none"}), ({"data": 2, "context": 2}, {"shard": "levels", "pair": 1, "node": 2})],
    ids=str,
)
def test_ranks_balance_as_one_process_does(ranks, mesh, parallel, balance):
    alone = steps({}, {}, balance)
    found = ranks(steps, mesh, parallel, balance, count=Mesh.of(mesh).ranks)[0]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert found["norm"] == pytest.approx(alone["norm"], rel=1e-5)
    for name, value in alone["gradients"].items():
        assert (found["gradients"][name] - value).norm() <= 1e-5 * value.norm() + 1e-8, name
    for kind, values in alone["state"].items():
        assert found["state"][kind] == pytest.approx(values, rel=1e-5)


def test_sketches_of_whole_gradients_need_whole_gradients(ranks):
    alone = steps({}, {}, "agvm")
    found = ranks(steps, {"replica": 2}, {"shard": "none"}, "agvm", count=2)[0]
    assert found["state"]["variance"] == pytest.approx(alone["state"]["variance"], rel=1e-4)
    for said in ranks(steps, {"data": 2}, {}, "agvm", count=2):
        assert "needs whole gradients" in said["refused"]
    for said in ranks(steps, {"pipe": 2}, {}, "projection", count=2):
        assert "stages of a pipeline" in said["refused"]
