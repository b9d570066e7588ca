"""Methods that ask the engine for more give the same on several ranks as on one: drawn labels, averages, the noise scale."""

import math
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
from tests.ranks.test_layouts import EXPERTS

SOPHIA = {"name": "sophia", "lr": 1e-3, "every": 1, "share": 1.0, "gamma": 1.0}
ADAMW = {"name": "adamw", "lr": 1e-2, "eps": 1e-3}
SGD = {"name": "sgd", "lr": 1e-2}
FREE = {"name": "schedule_free_adamw", "lr": 1e-2, "eps": 1e-3, "states": "8bit"}
AVERAGE = [{"name": "ema", "decay": 0.5}]
NOISE = [{"name": "noise_scale", "every": 1}]


HUTCHINSON = {**SOPHIA, "estimate": "hutchinson"}
FULL, TENSOR = ({"data": 2}, {}), ({"tensor": 2}, {})
COPIES = ({"replica": 2}, {"shard": "none"})
STAGES, COLUMNS = ({"tensor": 2, "pipe": 2}, {}), ({"data": 2, "context": 2}, {})
QUANTISED = {"shards": FULL, "tensor": TENSOR, "shards and tensor": ({"data": 2, "tensor": 2}, {}), "copies": COPIES}
LAYOUTS = {"shards": FULL, "copies": COPIES, "stages": STAGES, "columns": COLUMNS}
METHODS = {
    "lawa": {"latest": 2, "every": 1},
    "lcsc": {"latest": 2, "every": 1, "trials": 10, "times": 2},
    "lisa": {"layers": 1, "every": 2},
    "spsa": {"radius": 1e-2, "directions": 2},
    "deep_zero": {"radius": 1e-2, "keep": 0.002, "directions": 2},
    "con_adv": {"size": 0.2},
    "qk_clip": {"limit": 0.05},
    "tract": {"match": "embed.weight"},
}


ROWS = [[5, 1], [4], [2, 3]]
"""Of each step's micro-batches: uneven, too few for every rank, and a lone one."""


def beside(name: str) -> list[dict[str, Any]]:
    return [{"name": name, **METHODS[name]}]


def train(
    mesh: dict[str, int], parallel: dict[str, Any], optim: dict[str, Any], around: list[dict[str, Any]], options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Three steps; the averaged weights and the noise scale, from rank 0."""
    world = World(Mesh.of(mesh))
    bare = {"qk_norm": "none"} if around == beside("qk_clip") else {}
    model = Decoder(VOCABULARY, 3, **(MODEL | bare | (options or {}))).train()
    layout = spread(model, world, Parallel(**parallel))
    methods = [choose("optim/around", each, optimizers.TAGS) for each in around]
    moving = optimizers.build(model, [choose("optim", optim, optimizers.TAGS)], parameter_roles(model), methods)
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    progress = Progress(steps=3)
    for step in range(3):
        progress.step = step
        mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in batches(ROWS[step], step)]
        moving.begin(progress)
        engine.forward_backward(mine)
        moving.prepare(Probe(engine, mine, progress))
        moving.step()
        moving.zero_grad()
    with moving.averaged():
        found = {name: value.clone() for name, value in layout.whole()}
    return {"weights": found, "noise": progress.noise_scale} if world.first else {}


CASES = [
    pytest.param((*COPIES, SOPHIA, NOISE), id="sophia, copies"),
    pytest.param((*COPIES, SOPHIA, AVERAGE), id="sophia and ema, copies"),
    *(pytest.param(({"data": 2}, {"shard": how}, SOPHIA, NOISE), id=f"sophia, {how}") for how in ("state", "grad", "full")),
    pytest.param((*FULL, HUTCHINSON, []), id="sophia by hutchinson, shards"),
    pytest.param((*TENSOR, HUTCHINSON, []), id="sophia by hutchinson, tensor"),
    *(pytest.param((*layout, SOPHIA | {"states": "8bit"}, []), id=f"sophia in 8 bits, {name}") for name, layout in QUANTISED.items()),
    *(pytest.param((*layout, FREE, []), id=f"schedule-free in 8 bits, {name}") for name, layout in QUANTISED.items()),
    pytest.param((*FULL, ADAMW, [*AVERAGE, *NOISE]), id="ema, shards"),
    pytest.param(({"pipe": 2}, {}, ADAMW, [{"name": "ema", "decay": 0.5, "match": "blocks.1.*"}]), id="ema of one stage"),
    *(pytest.param((*layout, HUTCHINSON, []), id=f"sophia by hutchinson, {name}") for name, layout in (("stages", STAGES), ("columns", COLUMNS))),
    *(pytest.param((*layout, ADAMW, [*AVERAGE, *NOISE]), id=f"ema, {name}") for name, layout in (("stages", STAGES), ("columns", COLUMNS))),
    pytest.param(({"context": 2}, {"context": "ring"}, ADAMW, beside("qk_clip")), id="qk_clip, ring"),
    *(
        pytest.param((*layout, SGD if method in ("spsa", "deep_zero") else ADAMW, beside(method)), id=f"{method}, {name}")
        for method in METHODS
        for name, layout in LAYOUTS.items()
    ),
    *(
        pytest.param(({"pipe": 2}, {"pipe": schedule}, SGD, beside("spsa"), {"depth": 4, **more}), id=f"losses alone, {schedule}")
        for schedule, more in (("1f1b", {"tied": True}), ("interleaved", {"experts": EXPERTS}), ("zbv", {"experts": EXPERTS}), ("dualpipev", {}))
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_ranks_give_what_one_process_gives(ranks, case):
    mesh, parallel, optim, around, *options = case
    alone = train({}, {}, optim, around, *options)
    found = ranks(train, mesh, parallel, optim, around, *options, count=math.prod(mesh.values()))[0]
    near = 2e-4 if optim is HUTCHINSON else 2e-5  # a fifth of a step: differences of gradients are mostly rounding where the Hessian is small
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=near, msg=lambda said, name=name: f"{name}: {said}")
    assert found["noise"] == pytest.approx(alone["noise"], rel=1e-3)


def refused(mesh: dict[str, int], around: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """What is said about a layout."""
    try:
        train(mesh, {}, ADAMW, around, options)
    except BessemerError as error:
        return error.problem
    return ""


@pytest.mark.parametrize(
    ("mesh", "match", "options", "said"),
    [
        ({"tensor": 2}, "blocks.0.mlp.*.weight", {}, "its inputs are cut"),
        ({"pipe": 2}, "embed.weight", {"ahead": 1}, "looked up on two stages"),
        ({"data": 2}, "embed.weight", {"tied": True}, "also the head's"),
    ],
)
def test_layers_whose_inputs_no_rank_sees_are_not_corrected(ranks, mesh, match, options, said):
    assert all(said in each for each in ranks(refused, mesh, [{"name": "tract", "match": match}], options, count=2))
