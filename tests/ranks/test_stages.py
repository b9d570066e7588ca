"""Where stages of a pipeline begin, and several tasks with heads of their own in one."""

from typing import Any

import pytest
import torch

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.registry import choose
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.parallel import cost
from bessemer.parallel.order import Parallel, spread
from bessemer.train.engine import Engine
from tests.ranks.layouts import MODEL, VOCABULARY, batches, share


def test_costs_are_all_that_a_token_takes():
    for options in ({}, {"tied": True, "window": 5, "window_layers": [1]}, {"ahead": 2}, {"experts": {"count": 4, "active": 2, "dense": 1}}):
        model = Decoder(VOCABULARY, **(MODEL | {"depth": 4, "length": 64} | options))
        found = cost.counted(model, again=False)
        assert found.first + sum(found.blocks) + found.last == pytest.approx(model.flops_per_token(64))
        again = cost.counted(model, again=True)
        assert sum(again.blocks) == pytest.approx(sum(found.blocks) * 4 / 3)
        assert again.last == found.last


@pytest.mark.parametrize(
    ("costs", "stages", "cuts"),
    [
        (cost.Costs(0, [1, 1, 1, 1], 0), 2, [0, 2, 4]),
        (cost.Costs(0, [1, 1, 1, 1, 1, 1], 2), 2, [0, 4, 6]),  # the head is worth two blocks
        (cost.Costs(2, [1, 1, 1, 1, 1, 1], 2), 4, [0, 1, 3, 5, 6]),  # so is the embedding
        (cost.Costs(0, [5, 1, 1, 1], 0), 2, [0, 1, 4]),
    ],
)
def test_the_costliest_stage_costs_least(costs, stages, cuts):
    assert cost.first_blocks(costs, stages) == cuts


def test_what_is_measured_tells_a_long_part_from_a_short_one():
    model = Decoder(65_536, **(MODEL | {"depth": 3, "experts": {"count": 4, "active": 4, "ffn": 8192, "dense": 2}}))  # so long that no load hides it
    found = cost.measured(model, World(), False, torch.float32)
    assert found.blocks[0] == found.blocks[1] < found.blocks[2]
    assert found.last > found.blocks[0]  # a head of many tokens, and a narrow block
    assert all(p.grad is None for p in model.parameters())


def test_cuts_that_do_not_fit_are_refused():
    for inner in ([1], [2, 2], [1, 4], [0, 2]):
        with pytest.raises(RecipeError, match="further stages"):
            cost.given(4, 3, inner)
    assert cost.given(4, 3, [1, 3]) == [0, 1, 3, 4]


def step(mesh: dict[str, int], parallel: dict[str, Any]) -> dict[str, Any]:
    """A step of two tasks in turn, one of them without a row on some ranks; the second has parameters of its own."""
    world = World(Mesh.of(mesh))
    model = Decoder(VOCABULARY, 3, **(MODEL | {"depth": 4}))
    tasks = {"text": "next_token", "place": "position_prediction"}
    objectives = {task: (attach(model, task, choose("objectives", name)), 0.5 + number) for number, (task, name) in enumerate(tasks.items())}
    layout = spread(model, world, Parallel(**parallel))
    made = [objectives[task][0].prepare(batch, 7) for task, batch in zip(["text", "place", "text"], batches([3, 3, 1], 0), strict=True)]
    for batch, task in zip(made, ["text", "place", "text"], strict=True):
        batch.task = task
    mine = [share(batch, world.index("replica", "data"), world.count("replica", "data")) for batch in made]
    result = Engine(model, objectives, torch.float32, layout).forward_backward(mine)
    gradients = {name: value.clone() for name, value in layout.whole(gradients=True)}
    return {"loss": result.loss, "terms": result.terms, "gradients": gradients}


@pytest.mark.parametrize(
    ("mesh", "parallel"), [({"pipe": 2}, {}), ({"pipe": 2, "data": 2}, {"pipe": "zb1p"}), ({"pipe": 2, "tensor": 2}, {"pipe": "gpipe"})]
)
def test_tasks_with_heads_of_their_own_pass_through_stages(ranks, mesh, parallel):
    alone = step({}, {})
    assert {name.split("/")[0] for name in alone["terms"]} == {"text", "place"}
    assert any(name.startswith("tasks.place.") for name in alone["gradients"])
    for found in ranks(step, mesh, parallel, count=Mesh.of(mesh).ranks):
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert found["terms"] == pytest.approx(alone["terms"], rel=1e-5)
        for name, value in alone["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def refused(schedule: str, options: dict[str, Any]) -> str:
    try:
        spread(Decoder(VOCABULARY, **(MODEL | {"depth": 4} | options)), World(Mesh.of({"pipe": 2})), Parallel(pipe=schedule, shard="none"))
    except RecipeError as error:
        return error.problem
    return ""


@pytest.mark.parametrize("schedule", ["zb1p", "zbv", "dualpipev", "interleaved"])
def test_a_table_used_twice_on_the_last_stage_needs_an_undivided_backward_pass(ranks, schedule):
    for options, said in (({"tied": True, "ahead": 1}, "cuts a stage's backward pass in two"), ({"tied": True}, ""), ({"ahead": 1}, "")):
        wanted = said if schedule != "interleaved" else ""
        assert all(wanted in each and bool(each) == bool(wanted) for each in ranks(refused, schedule, options, count=2))
