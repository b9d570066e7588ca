"""Methods that ask the engine for more give the same on several ranks as on one: drawn labels, averages, the noise scale."""

from typing import Any

import pytest
import torch

from bessemer.core.errors import BessemerError
from bessemer.core.mesh import Mesh, World
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.optim._probe import Probe
from bessemer.parallel.order import Parallel, spread
from bessemer.train import optimizers
from bessemer.train.engine import Engine
from tests.ranks.layouts import MODEL, VOCABULARY, batches, share

SOPHIA = {"name": "sophia", "lr": 1e-3, "every": 1, "share": 1.0, "gamma": 1.0}
ADAMW = {"name": "adamw", "lr": 1e-2, "eps": 1e-3}
AVERAGE = [{"name": "ema", "decay": 0.5}]
NOISE = [{"name": "noise_scale", "every": 1}]


def train(mesh: dict[str, int], parallel: dict[str, Any], optim: dict[str, Any], around: list[dict[str, Any]]) -> dict[str, Any]:
    """Three steps; the averaged weights and the noise scale, from rank 0."""
    world = World(Mesh.of(mesh))
    model = Decoder(VOCABULARY, 3, **MODEL).train()
    layout = spread(model, world, Parallel(**parallel))
    beside = [choose("optim/around", each, optimizers.TAGS) for each in around]
    moving = optimizers.build(model, [choose("optim", optim, optimizers.TAGS)], parameter_roles(model), beside)
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    progress = Progress(steps=3)
    for step in range(3):
        progress.step = step
        mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in batches([4, 4], step)]
        moving.begin(progress)
        engine.forward_backward(mine)
        moving.prepare(Probe(engine, mine, progress))
        moving.step()
        moving.zero_grad()
    with moving.averaged():
        found = {name: value.clone() for name, value in layout.whole()}
    return {"weights": found, "noise": progress.noise_scale} if world.first else {}


@pytest.mark.parametrize(
    ("mesh", "parallel", "optim", "around"),
    [({"replica": 2}, {"shard": "none"}, SOPHIA, NOISE), ({"replica": 2}, {"shard": "none"}, SOPHIA, AVERAGE), ({"data": 2}, {}, ADAMW, AVERAGE)],
)
def test_ranks_give_what_one_process_gives(ranks, mesh, parallel, optim, around):
    alone = train({}, {}, optim, around)
    found = ranks(train, mesh, parallel, optim, around, count=2)[0]
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert found["noise"] == pytest.approx(alone["noise"], rel=1e-3)


def refused(optim: dict[str, Any], around: list[dict[str, Any]]) -> str:
    """What is said about a sharded run."""
    try:
        train({"data": 2}, {}, optim, around)
    except BessemerError as error:
        return error.problem
    return ""


@pytest.mark.parametrize(("optim", "around"), [(SOPHIA, []), (ADAMW, [{"name": "lisa", "layers": 1}]), (ADAMW, ["spsa"]), (ADAMW, ["con_adv"])])
def test_what_needs_whole_tensors_refuses_sharded_ones(ranks, optim, around):
    assert all("needs whole tensors" in said for said in ranks(refused, optim, around, count=2))
