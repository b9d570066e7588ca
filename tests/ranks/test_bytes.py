"""What real ranks send in a step of the engine is what the formulae of docs/parallel.md say, to the byte, axis by axis.

Over the network: what goes through memory in common is never sent.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bessemer.core.mesh import ROWS, TOKENS, Mesh, World
from bessemer.core.registry import choose
from bessemer.parallel.order import Parallel, spread
from bessemer.plan import dry, tasks
from bessemer.plan.formula import moved, sends, sent
from bessemer.plan.stand_ins import even
from bessemer.plan.traffic import Listener
from bessemer.train.engine import Engine
from bessemer.train.task import Task

MODEL = {"depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "ffn": 48, "length": 30}
EXPERTS = {"experts": {"count": 4, "active": 2, "ffn": 24, "dense": 1}}
CASES: list[tuple[dict[str, int], dict[str, Any], dict[str, Any], int]] = [
    # mesh, parallel, model, micro-batches
    *(({"data": ranks}, {"shard": shard}, {}, 2) for ranks in (2, 4) for shard in ("none", "state", "grad", "full")),
    ({"replica": 2, "data": 2}, {}, {"tied": True}, 2),
    ({"replica": 2, "data": 2}, {"shard": "grad"}, {}, 3),
    ({"replica": 4}, {"shard": "none"}, {}, 2),
    ({"tensor": 2}, {}, {"qk_norm": "whole"}, 2),
    ({"tensor": 4}, {"remat": "selective"}, {"kv_heads": 4, "mlp": "gelu", "mlp_bias": True, "attention_bias": "all"}, 1),
    ({"tensor": 2}, {}, {"ahead": 1, "tied": True}, 2),
    *(({"context": 2}, {"context": method}, {}, 2) for method in ("ring", "ulysses", "gather", "auto")),
    ({"context": 4}, {"context": "both"}, {}, 1),
    ({"context": 4}, {"context": "ulysses"}, {"kv_heads": 4}, 1),
    ({"data": 2, "expert": 2}, {"shard": "none"}, EXPERTS, 2),
    ({"data": 4, "expert": 4}, {}, EXPERTS, 1),
    ({"data": 4, "expert": 2}, {}, EXPERTS, 2),
    ({"data": 4}, {"shard": "levels", "pair": 2, "node": 2}, {}, 3),
    ({"replica": 2, "data": 4}, {"shard": "levels", "pair": 2, "node": 4}, {"tied": True}, 2),
    ({"data": 8, "expert": 2}, {"shard": "levels", "pair": 2, "node": 4}, EXPERTS, 2),
    ({"data": 4, "expert": 2, "expert_tensor": 2}, {}, EXPERTS, 2),
    ({"data": 4, "expert_tensor": 2}, {"shard": "none"}, EXPERTS, 1),
    ({"tensor": 2}, {"pieces": 3}, {}, 2),
    ({"data": 2, "tensor": 2}, {}, {}, 2),
    ({"data": 2, "tensor": 2}, {"shard": "none"}, {}, 2),
    ({"context": 2, "data": 2}, {"context": "ring", "shard": "state"}, {}, 2),
    ({"context": 2, "tensor": 2, "data": 2}, {"context": "ring"}, {}, 1),
]


def plan(mesh: dict[str, int], parallel: dict[str, Any], model: dict[str, Any], micro_batches: int) -> dry.Plan:
    return dry.Plan(
        choose("models/families", {"name": "decoder", **MODEL, **model}), 65, Mesh.of(mesh), Parallel(**parallel, exchange="network"),
        [Task.model_validate({"objective": "multi_token" if "ahead" in model else "next_token"})], [choose("optim", "adamw")], torch.float32, 8, 30, micro_batches,
    )  # fmt: skip


def measured(*case: Any) -> tuple[dict[str, float], float]:
    """What this rank sends in a step, by axis; and what of it are figures: counts, loss and norm."""
    asked = plan(*case)
    world = World(asked.mesh)
    model = asked.model(asked.vocabulary, 0).train()
    passes = tasks.passes(asked, model, world)
    layout = spread(model, world, asked.parallel)
    even(model)
    engine = Engine(model, {name: (each, 1.0) for name, each in passes.objectives.items()}, torch.float32, layout)
    with Listener(world) as listener:
        result = engine.forward_backward([passes.kinds[0][0]] * asked.micro_batches)
        engine.clip(1.0)
    found: dict[str, float] = {}
    for each in listener.traffic():
        found[each.axes] = found.get(each.axes, 0.0) + each.bytes
    counted = 2 * moved(asked.mesh.count(*ROWS)) * 8 * 4  # rows, tokens, and what terms are divided by: two streams
    counted += 2 * moved(asked.mesh.count(*TOKENS)) * sum(count.numel() * 8 for count in result.counts.values())
    return found, counted + 2 * moved(asked.mesh.ranks) * 8 * (1 + asked.micro_batches + len(result.terms))


def name(case: Any) -> str:
    return ", ".join(f"{k}={v}" for part in case[:3] for k, v in part.items() if k != "experts")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_ranks_send_what_the_formulae_say(ranks, case):
    found, figures = ranks(measured, *case, count=Mesh.of(case[0]).ranks)[0]
    wanted = sent(plan(*case))
    assert sum(found.values()) == pytest.approx(sum(wanted.values()) + figures, abs=0.01)
    for axis in ("tensor", "replica", "context", "expert"):
        if axis in found and len(case[0]) > 1 and case[1].get("shard") != "none":
            assert found[axis] == pytest.approx(wanted[axis], abs=0.01)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_fake_ranks_send_the_same(case):
    asked = plan(*case)
    heard = sum(each.bytes for each in dry.run(asked).traffic[0])
    assert heard == pytest.approx(sum(sent(asked).values()) + 2 * moved(asked.mesh.ranks) * 8, abs=0.01)  # and the gradient's norm


def sent_to_stages(*case: Any) -> tuple[int, float]:
    """What this rank sends to other stages in the second step; in the first they tell each other of shapes as well."""
    asked = plan(*case)
    world = World(asked.mesh)
    model = asked.model(asked.vocabulary, 0).train()
    passes = tasks.passes(asked, model, world)
    engine = Engine(model, {name: (each, 1.0) for name, each in passes.objectives.items()}, torch.float32, spread(model, world, asked.parallel))
    batches = [passes.kinds[0][0]] * asked.micro_batches
    engine.forward_backward(batches)
    with Listener(world) as listener:
        engine.forward_backward(batches)
    sends = [each for each in listener.traffic() if each.kind == "send"]
    return sum(each.calls for each in sends), sum(each.bytes for each in sends)


STAGES: list[tuple[dict[str, int], dict[str, Any], dict[str, Any], int]] = [
    ({"pipe": 2}, {}, {"ahead": 1}, 3),
    ({"pipe": 4}, {"pipe": "gpipe"}, {"depth": 4, "tied": True}, 3),
    ({"pipe": 2}, {"pipe": "interleaved"}, {"depth": 4}, 4),
    ({"pipe": 2, "data": 2}, {"pipe": "zbv"}, {"depth": 4}, 5),
    ({"pipe": 2}, {}, EXPERTS, 2),
]


@pytest.mark.parametrize("case", STAGES, ids=name)
def test_stages_send_what_the_formula_says(ranks, case):
    mesh = Mesh.of(case[0])
    found = ranks(sent_to_stages, *case, count=mesh.ranks)
    asked = plan(*case)
    model = asked.model(asked.vocabulary, 0)
    assert found == [sends(asked, model, mesh.coordinates(rank)["pipe"]) for rank in range(mesh.ranks)]
    assert sent(asked)["pipe"] == found[0][1]
