"""What the dry run says of a step is what real ranks hold and send: the same bytes, kind by kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bessemer.cli import main
from bessemer.core import shards
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh, World
from bessemer.core.recipe import read
from bessemer.core.registry import choose
from bessemer.models.attach import attach
from bessemer.models.reparameterized import reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.parallel.order import Parallel, spread
from bessemer.plan import dry, step, tasks
from bessemer.plan.held import Held
from bessemer.plan.traffic import Listener
from bessemer.run import dry_run
from bessemer.train import optimizers
from bessemer.train.task import Task

MODEL = {"depth": 5, "width": 32, "heads": 4, "kv_heads": 4, "head_size": 8, "ffn": 48, "length": 32}
EXPERTS = {"count": 4, "active": 2, "ffn": 24, "dense": 2}
CASES: list[tuple[dict[str, int], dict[str, Any], dict[str, Any], int]] = [
    # mesh, parallel, model, micro-batches
    ({"data": 2}, {}, {}, 3),
    ({"data": 4}, {"shard": "state"}, {}, 3),
    ({"replica": 2, "data": 2}, {"shard": "grad"}, {"tied": True}, 2),
    ({"data": 2}, {"shard": "none"}, {}, 1),
    ({"tensor": 2, "data": 2}, {}, {"window": 8, "window_layers": [1, 3]}, 1),
    ({"context": 2}, {"context": "ring"}, {}, 2),
    ({"context": 4}, {"context": "ulysses"}, {}, 1),
    ({"context": 2, "tensor": 2}, {"context": "gather"}, {}, 1),
]


OPTIM = [{"role": "matrix", "name": "muon"}, {"name": "adamw"}]
WHOLE = [{"role": "matrix", "name": "galore", "rank": 4}, {"role": "embedding", "name": "adamw8bit"}, {"name": "lion"}]
"""Rules of which one rank keeps all state of a parameter that several hold pieces of."""
TASKS = [
    {"name": "text"},
    {"name": "hidden", "objective": "masked_language"},
    {"name": "seen", "objective": {"name": "mae"}, "adapter": {"name": "patches", "size": 8}},
    {"name": "pairs", "objective": {"name": "clip", "group": 4}, "adapter": {"name": "patches", "size": 8}},
    {"name": "views", "objective": {"name": "lejepa", "group": 4}, "adapter": {"name": "patches", "size": 8}},
    {"name": "replaced", "objective": {"name": "electra", "width": 64}},
]
"""Each of which is a third of a step of 3 micro-batches, or less."""


def plan(
    mesh: dict[str, int],
    parallel: dict[str, Any],
    model: dict[str, Any],
    micro_batches: int,
    asked: list[dict[str, Any]] | None = None,
    mixed: bool = False,
    optim: list[dict[str, Any]] = OPTIM,
) -> dry.Plan:
    return dry.Plan(
        choose("models/families", {"name": "decoder", **MODEL, **model}), 65, Mesh.of(mesh), Parallel(**parallel, exchange="network"),
        [Task.model_validate(each) for each in asked or [{}]], [choose("optim", each, optimizers.TAGS) for each in optim], torch.float32, 8,
        model.get("length", 32), micro_batches, mixed=mixed,
    )  # fmt: skip


def measured(*case: Any) -> dict[str, Any]:
    """A real step on this rank."""
    tried = plan(*case)
    world = World(tried.mesh)
    model = tried.model(tried.vocabulary, 0).train()
    passes = tasks.passes(tried, model, world)
    layout = spread(model, world, tried.parallel)
    held, listener = Held(model), Listener(world)
    batches = [batch for batch, count in passes.kinds for _ in range(round(count))]
    with listener:
        step.take(tried, passes.objectives, layout, batches, [held])
    kept = [held.bytes]
    for batch, _ in passes.kinds[1:]:
        held.restart()
        step.take(tried, passes.objectives, layout, [batch], [held])
        kept.append(held.bytes)
    for parameter in model.parameters():  # blanks that no task of the step shows the model, and experts without tokens, are to have state too
        parameter.grad = torch.ones_like(parameter)
    moving = optimizers.build(model, tried.optim, parameter_roles(model))
    moving.step()
    states = [each for optimizer in moving.optimizers for entries in optimizer.state.values() for each in entries.values()]
    return {
        "parameters": sum(bytes_of(p) for p in model.parameters()),
        "optimizer": sum(bytes_of(each) for each in states if isinstance(each, torch.Tensor) and each.ndim),
        "activations": max(kept),
        "traffic": {(t.kind, t.axes): (t.calls, round(t.bytes)) for t in listener.traffic()},
    }


def bytes_of(value: torch.Tensor) -> int:
    return shards.local(value).numel() * value.element_size()


def name(case: Any) -> str:
    return ", ".join(f"{k}={v}" for part in case[:3] for k, v in part.items())


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("small", [0, dry.SMALL], ids=["without memory", "with memory"])
def test_bytes_are_those_of_real_ranks(ranks, monkeypatch, case, small):
    monkeypatch.setattr(dry, "SMALL", small)
    mesh = Mesh.of(case[0])
    found = dry.run(plan(*case))
    real = ranks(measured, *case, count=mesh.ranks)
    assert found.parameters.tolist() == [each["parameters"] for each in real]
    assert found.optimizer.tolist() == [each["optimizer"] for each in real]
    assert {(t.kind, t.axes): (t.calls, round(t.bytes)) for t in found.traffic[0] if t.calls and "update" not in t.kind} == real[0]["traffic"]
    assert found.activations[0] == real[0]["activations"]


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4], ({"data": 4, "expert": 2}, {}, {"experts": EXPERTS}, 2)], ids=name)
def test_state_that_ranks_keep_alone_is_where_it_really_is(ranks, case):
    found = dry.run(plan(*case, optim=WHOLE))
    real = ranks(measured, *case, None, False, WHOLE, count=Mesh.of(case[0]).ranks)
    assert found.optimizer.tolist() == [each["optimizer"] for each in real]
    assert len(set(found.optimizer.tolist())) > 1


@pytest.mark.parametrize("small", [0, dry.SMALL], ids=["without memory", "with memory"])
@pytest.mark.parametrize(
    ("mesh", "parallel", "chosen", "mixed"),
    [
        ({"data": 2}, {}, [0, 1, 2], False),
        ({"data": 2}, {"shard": "none"}, [3, 4, 0], False),
        ({"tensor": 2}, {}, [2, 1, 5], False),
        ({"data": 2}, {}, [0, 2, 3], True),
    ],
    ids=str,
)
def test_each_task_passes_what_it_does_on_real_ranks(ranks, monkeypatch, small, mesh, parallel, chosen, mixed):
    monkeypatch.setattr(dry, "SMALL", small)
    case = (mesh, parallel, {"length": 96}, 3, [TASKS[number] for number in chosen], mixed)
    found = dry.run(plan(*case))
    assert found.untried == (("replaced",) if 5 in chosen and not small else ())  # where ELECTRA's blanks are, only numbers tell
    if found.untried:
        return
    real = ranks(measured, *case, count=2)
    assert found.parameters.tolist() == [each["parameters"] for each in real]
    assert found.optimizer.tolist() == [each["optimizer"] for each in real]
    assert {(t.kind, t.axes): (t.calls, round(t.bytes)) for t in found.traffic[0] if t.calls and "update" not in t.kind} == real[0]["traffic"]
    assert found.activations[0] == real[0]["activations"]


def test_what_cannot_be_tried_without_data_is_said(tmp_path):
    known = [
        {"name": "text"},
        {"name": "later", "objective": {"name": "self_distill", "teacher": str(tmp_path)}},
        {"name": "logits", "objective": "sparse_distill"},
    ]
    found = dry.run(plan({"data": 2}, {}, {}, 3, known))
    assert found.untried == ("later", "logits")
    alike = dry.run(plan({"data": 2}, {}, {}, 3, [{"name": name} for name in "abc"]))
    assert found.plain()["traffic"] == alike.plain()["traffic"]


def test_a_pipeline_refuses_what_reads_before_it():
    with pytest.raises(RecipeError, match="reads the batch before the trunk does"):
        dry.run(plan({"pipe": 2}, {}, {}, 3, [TASKS[5]]))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv"])
def test_stages_without_memory_hold_and_send_the_same(monkeypatch, schedule):
    model = {"depth": 4, "tied": schedule == "1f1b", "experts": EXPERTS if schedule == "interleaved" else None}
    case = ({"pipe": 2, "data": 2, "tensor": 2}, {"pipe": schedule}, model, 3)
    with_memory = dry.run(plan(*case)).plain()
    monkeypatch.setattr(dry, "SMALL", 0)
    assert dry.run(plan(*case)).plain() == with_memory
    places = {each["pipe"] for each in with_memory["traffic"] if each["kind"] == "send"}
    assert places == {0, 1}


def test_experts_are_shared_out_as_on_real_ranks(ranks):
    case = ({"data": 4, "expert": 2}, {}, {"experts": EXPERTS}, 1)
    found = dry.run(plan(*case))
    real = ranks(measured, *case, count=4)
    assert found.parameters.tolist() == [each["parameters"] for each in real]
    assert found.optimizer.tolist() == [each["optimizer"] for each in real]
    calls = {(t.kind, t.axes): t.calls for t in found.traffic[0] if "update" not in t.kind}
    assert calls == {key: calls for key, (calls, _) in real[0]["traffic"].items()}
    assert calls["all-to-all", "expert"] == 3 * (1 + 2 + 2)  # counts, and rows there and back, forward and backward


def test_the_command_tells_it(capsys):
    assert main(["run", "tiny", "train.mesh.tensor=2", "train.model.depth=2", "--dry-run", "--ranks", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]["train"]
    assert found["mesh"] == "data 4 x tensor 2"
    assert sum(row["count"] for row in found["ranks"]) == 8
    assert {row["kind"] for row in found["traffic"]} >= {"all-gather", "reduce-scatter"}


@pytest.mark.parametrize(
    ("recipe", "asked", "untried"),
    [
        ("joint", [], []),
        ("tiny", ['train.task=[{name = "hidden", objective = "electra"}]'], ["hidden"]),
        ("tiny", ['train.task=[{name = "hidden", objective = "masked_language"}, {name = "text"}]'], []),
    ],
)
def test_every_tasks_own_parameters_are_counted(capsys, recipe, asked, untried):
    assert main(["run", recipe, *asked, "--dry-run", "--ranks", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]["train"]
    assert found["not_tried"] == untried
    given = read(recipe, asked)
    options = next(stage.choice.options for stage in given.stages if stage.name == "train")
    vocabulary = next(stage.choice.options["vocabulary"] for stage in given.stages if stage.name == "train_tokenizer")
    model: Any = options["model"].with_options(length=256)(vocabulary, 0)
    bare = sum(p.numel() for p in model.parameters())
    for task in options["task"]:
        attach(model, task.name, task.objective, task.adapter)
    whole = sum(p.numel() for p in model.parameters())
    assert 4 * whole == sum(row["count"] * row["parameters_bytes"] for row in found["ranks"])
    assert (whole > bare) == (recipe == "joint" or "electra" in asked[0])


def test_what_acts_around_an_update_is_counted_and_sees_every_block(capsys):
    held = {}
    for around in ("[]", "['ema']", "[{name = 'lisa', layers = 4}]"):
        assert main(["run", "tiny", f"train.around={around}", "--dry-run", "--ranks", "2", "--json"]) == 0
        held[around] = json.loads(capsys.readouterr().out)["stages"]["train"]["ranks"][0]
    assert held["['ema']"]["optimizer_bytes"] == held["[]"]["optimizer_bytes"] + held["[]"]["parameters_bytes"]
    assert main(["run", "tiny", "train.around=[{name = 'lisa', layers = 9}]", "--dry-run", "--ranks", "2"]) == 2
    assert "9 of 8 layers" in capsys.readouterr().err


def test_ranks_that_do_not_fit_are_refused(capsys):
    assert main(["run", "tiny", "train.mesh.tensor=3", "--dry-run", "--ranks", "8"]) == 2
    assert "takes 3 ranks, and 8 are asked for" in capsys.readouterr().err


def test_what_layers_are_made_of_is_counted(capsys):
    assert main(["run", "tiny", 'train.adapt="lora"', "--dry-run", "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]["train"]
    given = read("tiny", [])
    options = next(stage.choice.options for stage in given.stages if stage.name == "train")
    vocabulary = next(stage.choice.options["vocabulary"] for stage in given.stages if stage.name == "train_tokenizer")
    model: Any = reparameterize(options["model"].with_options(length=256)(vocabulary, 0), choose("models/reparameterize", "lora"), 0)
    assert 4 * sum(p.numel() for p in model.parameters()) == sum(row["count"] * row["parameters_bytes"] for row in found["ranks"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["train.around=['qk_clip']"], "normalised"),
        (["train.around=[{ name = 'tract', match = 'embed.weight' }]", "train.model.tied=true"], "also the head's"),
        (["train.adapt={ name = 'bone', rank = 5 }", "train.mesh.tensor=2"], "blocks of 5"),
        (["train.adapt={ name = 'lora', match = ['blocks.*', 'head'] }", "train.mesh.tensor=2"], "can't share its vocabulary"),
        (["train.adapt='relora'", "train.around=['ema']", "train.parallel.shard='none'"], "stand for something else"),
    ],
)
def test_what_the_run_would_refuse_is_refused(capsys, asked, said):
    assert main(["run", "tiny", *asked, "--dry-run", "--ranks", "2"]) == 2
    assert said in capsys.readouterr().err


def test_people_are_shown_ranks_that_hold_the_same_once_and_not_hundreds_of_kinds():
    held = {f"{each}_bytes": 1000 for each in ("parameters", "gradients", "activations", "gathered")}
    rows = [{"first": n, "last": n, "count": 1, **held, "optimizer_bytes": state} for n, state in enumerate([5000, 5001, *range(6000, 9000, 100)])]
    said = dry_run.text({"stages": {"train": {"mesh": "data 32", "micro_batches": 1, "not_tried": [], "ranks": rows, "traffic": []}}})
    assert "2 of 0-1 " in said
    assert "and 19 ranks of other kinds" in said
    assert "1 micro-batch a step" in said
