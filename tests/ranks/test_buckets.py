"""Gradients are summed once a step, in buckets that leave while the backward pass goes on; what comes out is what one process finds."""

from typing import Any

import torch
import torch.distributed as dist

from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.parallel import buckets
from bessemer.parallel.order import Parallel, spread
from bessemer.train.engine import Engine
from tests.ranks.layouts import MODEL, VOCABULARY, batches, share


def step(count: int, size: int) -> dict[str, Any]:
    """One step of ragged micro-batches (with two ranks, one has no row of the last) in buckets of `size` bytes; what was sent, and when."""
    world = World(Mesh(data=count))
    model = Decoder(VOCABULARY, 3, **MODEL)
    layout = spread(model, world, Parallel(shard="none"))
    layout.buckets = [buckets.Buckets(parameters, world.group(*axes), size) for axes, parameters in layout.partial.items()]
    engine = Engine(model, {"text": (choose("objectives", "next_token")(), 1.0)}, torch.float32, layout)
    sent: list[tuple[int, bool]] = []
    reduce = dist.all_reduce

    def note(values: torch.Tensor, *given: Any, **named: Any) -> Any:
        if named.get("async_op"):
            sent.append((values.nbytes, model.embed.weight.grad is None))
        return reduce(values, *given, **named)

    dist.all_reduce = note
    try:
        engine.forward_backward([share(batch, world.index("data"), count) for batch in batches([1], 0)])
        first = len(sent)
        model.zero_grad()
        engine.forward_backward([share(batch, world.index("data"), count) for batch in batches([5, 2, 1], 1)])
    finally:
        dist.all_reduce = reduce
    gradients = {name: value.clone() for name, value in layout.whole(gradients=True)}
    return {"sent": sent, "first": first, "gradients": gradients, "bytes": sum(p.nbytes for p in model.parameters())}


def test_ragged_micro_batches_are_reduced_once_in_buckets_during_the_backward_pass(ranks):
    alone = step(1, 1)
    for size, least in ((1, 10), (8192, 4), (2**30, 1)):
        for found in ranks(step, 2, size, count=2):
            sent = found["sent"]
            assert found["first"] >= least
            assert len(sent) == 2 * found["first"]  # the second step, of three micro-batches, sends no more than the first, of one
            assert sum(each for each, _ in sent) == 2 * found["bytes"]
            early = [first for _, first in sent[: found["first"]]]
            assert early[:-1] == [True] * (len(early) - 1)  # before the gradient of the first layer was there
            for name, value in alone["gradients"].items():
                torch.testing.assert_close(found["gradients"][name], value, rtol=1e-5, atol=1e-7, msg=name)
