"""Saved under one layout, loaded under another: weights, optimizer state and the next step's loss are equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bessemer.core.mesh import Mesh, World
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.reparameterized import KIND, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.parallel.together import change
from bessemer.train import optimizers
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import latest
from bessemer.train.checkpoint_state import restore, state_of
from bessemer.train.engine import Engine
from tests.ranks.layouts import ADAMW, MODEL, MUON, VOCABULARY, batches, share

LAYOUTS: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({}, {}),
    ({"data": 2, "tensor": 2}, {}),
    ({"tensor": 2, "replica": 2}, {"shard": "none"}),
    ({"pipe": 2, "data": 2}, {"shard": "state"}),
    ({"data": 4}, {"shard": "grad"}),
    ({"pipe": 2, "tensor": 2}, {"pipe": "interleaved"}),
]


ROUTED: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"data": 4, "expert_tensor": 2}, {}),
    ({}, {}),
    ({"data": 4, "expert": 2}, {"shard": "levels", "pair": 1, "node": 2}),
    ({"tensor": 2, "data": 2, "expert": 2, "expert_tensor": 2}, {"shard": "none"}),
]
WHOLE = [
    {"role": "matrix", "name": "shampoo", "lr": 0.02, "every": 1},
    {"role": "embedding", "name": "adamw8bit", "lr": 0.01, "eps": 1e-3},
    {"name": "lamb"},
]
"""Rules of which one rank keeps all state of a parameter that several hold pieces of, and one that adds up norms."""
EXPERTS = {"count": 4, "active": 2, "ffn": 24, "bias": 0.0}


def go_on(folder: str, mesh: dict[str, int], parallel: dict[str, Any], options: dict[str, Any], made: dict[str, Any], seed: int) -> dict[str, Any]:
    """Loads the newest checkpoint of the folder if there is one, reports the state, takes a step and saves what it came to."""
    world = World(Mesh.of(mesh))
    model: Any = Decoder(VOCABULARY, seed, **(MODEL | options))
    if "adapt" in made:
        model = reparameterize(model, choose(KIND, made["adapt"]), seed)
    layout = spread(model, world, Parallel(**parallel))
    around = [choose("optim/around", each, optimizers.TAGS) for each in made.get("around", [])]
    moving = optimizers.build(model, [choose("optim", each, optimizers.TAGS) for each in made["optim"]], parameter_roles(model), around)
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    saver = Checkpointer(Path(folder), keep_last=99)
    found = latest(saver.folder)
    step = 0
    if found is not None:
        restore(found, model, moving.optimizers, layout.parts)
        step = found.step
    mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in batches([4, 2], step)]
    loss = engine.forward_backward(mine).loss
    moving.step()
    change(model, Progress(step=step, steps=9), moving, {})
    moving.zero_grad()
    tensors, plain = state_of(model, moving.optimizers, layout.parts)
    saver.save(step + 1, tensors, layout.merged(plain))
    saver.wait()
    if dist.is_initialized():
        dist.barrier()
    weights = {name: value.clone() for name, value in layout.whole()}
    with moving.averaged():
        weights |= {f"averaged {name}": value.clone() for name, value in layout.whole()}
    return {"loss": loss, "weights": weights} if world.first else {}


@pytest.mark.parametrize(
    ("options", "made", "layouts"),
    [
        ({"depth": 4}, {"optim": MUON}, LAYOUTS),
        ({"depth": 4, "tied": True}, {"optim": ADAMW}, LAYOUTS),
        ({"experts": EXPERTS}, {"optim": ADAMW}, ROUTED),
        ({"depth": 4}, {"optim": WHOLE}, LAYOUTS),
        ({"experts": EXPERTS}, {"optim": WHOLE}, ROUTED),
        ({"depth": 4}, {"optim": ADAMW, "around": [{"name": "lawa", "latest": 2, "every": 1}]}, LAYOUTS),
        ({"depth": 4}, {"optim": [{"name": "schedule_free_adamw", "eps": 1e-3, "states": "8bit"}]}, LAYOUTS),
        ({"depth": 4}, {"optim": ADAMW, "adapt": {"name": "switch_lora", "rank": 4, "interval": 2.0, "hold": 1}}, LAYOUTS),
        ({"attention_bias": "all"}, {"optim": [{"name": "adamw8bit", "lr": 0.01, "eps": 1e-3}]}, LAYOUTS[:2]),
        ({}, {"optim": ADAMW, "adapt": {"name": "sltrain", "rank": 4}}, LAYOUTS[:2]),
        ({}, {"optim": ADAMW, "adapt": {"name": "lost", "rank": 4}}, LAYOUTS[:2]),
    ],
    ids=["muon", "adamw", "experts", "whole", "whole experts", "lawa", "schedule-free", "switch_lora", "biases", "sltrain", "lost"],
)
def test_a_run_moves_from_layout_to_layout(ranks, tmp_path, options, made, layouts):
    """One step under each layout in turn, the next going on from what the last saved, is the training of one process."""
    for number, (mesh, parallel) in enumerate(layouts):
        count = Mesh.of(mesh).ranks
        arguments = (options, made, number)  # another seed each time: what is not restored shows
        moved = ranks(go_on, str(tmp_path / "moved"), mesh, parallel, *arguments, count=count)[0]
        alone = go_on(str(tmp_path / "alone"), {}, {}, *arguments)
        assert moved["loss"] == pytest.approx(alone["loss"], rel=1e-5), mesh
        for name, value in alone["weights"].items():
            near = 1e-4 if "adapt" in made else 1e-5  # factors that begin at zero make much of a rounding error
            assert (moved["weights"][name] - value).norm() <= near * value.norm(), (mesh, name)
    one, other = latest(tmp_path / "alone"), latest(tmp_path / "moved")
    assert one is not None
    assert other is not None
    expected, got = one.read(), other.read()
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        away = (got[name] - value).double().norm() / value.double().norm().clamp(min=1e-30)
        assert away <= (1e-5 if name.startswith("model.") and "adapt" not in made else 1e-4), (name, float(away))
