"""Compiled blocks, with attention and experts across ranks inside, compute what plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.parallel.order import Parallel, spread
from bessemer.train.engine import Engine
from tests.ranks.layouts import MODEL, batches, share

EXPERTS = {"count": 4, "active": 2, "ffn": 24, "capacity": 0.8, "balance": 0.1}


def learned(mesh: dict[str, int], method: str, compiled: bool) -> dict[str, Any]:
    world = World(Mesh.of(mesh))
    model = Decoder(65, 3, **{**MODEL, "depth": 1, "experts": EXPERTS})
    layout = spread(model, world, Parallel(context=method))
    if compiled:
        torch._dynamo.reset()
        for block in model.blocks:
            block.compile(backend="aot_eager", dynamic=False)
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in batches([4, 2], 0)]
    result = engine.forward_backward(mine)
    return {"loss": torch.tensor(result.loss), **{name: value.clone() for name, value in layout.whole(gradients=True)}}


@pytest.mark.parametrize(("mesh", "method"), [({"context": 2}, "ring")], ids=str)
def test_compiled_blocks_are_the_same(ranks, mesh, method):
    plain, compiled = (ranks(learned, mesh, method, how, count=Mesh.of(mesh).ranks, timeout=200)[0] for how in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6, msg=name)
