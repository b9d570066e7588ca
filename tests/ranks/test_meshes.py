"""Ten thousand meshes drawn by key: the dry run builds each and takes a step on it, or says in one sentence what is wrong. None crashes."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import torch

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh
from bessemer.core.registry import choose
from bessemer.parallel.order import Parallel
from bessemer.plan import dry
from bessemer.train import optimizers
from bessemer.train.task import Task

MESHES = 10_000
SMALL = {"width": 16, "heads": 4, "kv_heads": 2, "head_size": 4, "ffn": 24, "length": 16}
PATCHES = {"name": "patches", "size": 4, "picture": 8}
RECIPES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "dense": (SMALL | {"depth": 4}, [{}]),
    "tied": (SMALL | {"depth": 3, "tied": True, "positions": "learned", "mlp": "gelu", "window": 6, "window_layers": [1]}, [{}]),
    "experts": (SMALL | {"depth": 2, "experts": {"count": 4, "active": 2, "ffn": 8, "shared": 1, "balance": 0.1}}, [{}]),
    "several tokens": (SMALL | {"depth": 2, "ahead": 1, "qk_norm": "whole"}, [{"objective": "multi_token"}]),
    "several tasks": (SMALL | {"depth": 2}, [{"objective": "masked_language"}, {"name": "seen", "objective": "mae", "adapter": PATCHES}]),
}
"""Model and tasks."""
SIZES = {
    "pipe": [1] * 40 + [2, 2, 3, 5],
    "replica": [1] * 14 + [2],
    "data": [1] * 12 + [2, 2, 2, 3],
    "context": [1] * 24 + [2, 2, 4],
    "tensor": [1] * 16 + [2, 2, 2, 3, 4],
    "expert": [1] * 6 + [2, 2, 3],
    "expert_tensor": [1] * 14 + [2, 3],
}
SENTENCE = re.compile(r"[^\n.]([^\n.]|\.(?! )){9,158}")
CHOICES = {name: get_args(field.annotation) for name, field in Parallel.model_fields.items()}
OPTIONS: dict[str, Sequence[Any]] = {name: words for name, words in CHOICES.items() if words and all(isinstance(word, str) for word in words)}
OPTIONS |= {"cuts": ["measured", [1], [3, 1]], "pieces": [2, 3], "pair": [1, 3], "node": [2, 4]}


def drawn(number: int) -> tuple[str, dict[str, int], dict[str, Any]]:
    """The recipe, mesh and options of a key, without options that say nothing about this mesh."""
    draw = random.Random(number)
    recipe = sorted(RECIPES)[number % len(RECIPES)]
    mesh = {axis: draw.choice(sizes) for axis, sizes in SIZES.items()}
    if recipe != "experts" and draw.random() < 0.95:
        mesh |= {"expert": 1, "expert_tensor": 1}
    given = {name: draw.choice(values) for name, values in OPTIONS.items() if draw.random() < 0.035}
    idle = {
        "pipe": mesh["pipe"] == 1,
        "cuts": mesh["pipe"] == 1,
        "pieces": mesh["tensor"] == 1,
        "context": mesh["context"] == 1,
        "shard": mesh["replica"] * mesh["data"] * mesh["context"] == 1,
    }
    given = {name: value for name, value in given.items() if not idle.get(name) and value != Parallel.model_fields[name].default}
    return recipe, {axis: size for axis, size in mesh.items() if size > 1}, given


def tried(recipe: str, mesh: dict[str, int], given: dict[str, Any]) -> str:
    """How it went: "built", or the sentence that refuses it."""
    model, tasks = RECIPES[recipe]
    optim = [choose("optim", each, optimizers.TAGS) for each in ({"role": "matrix", "name": "muon"}, {"name": "adamw"})]
    family = choose("models/families", {"name": "decoder", **model})
    try:
        plan = dry.Plan(family, 33, Mesh.of(mesh), Parallel(**given), list(map(Task.model_validate, tasks)), optim, torch.float32, 4, 16)
        found = dry.run(plan)
    except RecipeError as error:
        refused = error
    else:
        assert sum(row["count"] for row in found.ranks()) == plan.mesh.ranks
        assert found.parameters.min() >= 0
        assert found.activations.min() > 0
        return "built"
    assert (refused.key or "").split(".")[0] in ("mesh", "parallel"), refused.describe()
    assert SENTENCE.fullmatch(refused.problem), refused.problem
    return refused.problem


def test_every_mesh_is_built_or_refused_in_a_sentence():
    known: dict[str, str] = {}
    outcomes: Counter[str] = Counter()
    for number in range(MESHES):
        asked = drawn(number)
        if repr(asked) not in known:
            try:
                known[repr(asked)] = tried(*asked)
            except BaseException as error:
                raise AssertionError(f"mesh {number}: {asked}") from error
        outcomes[known[repr(asked)]] += 1
    assert outcomes["built"] > MESHES / 3, outcomes
    assert sum(outcome == "built" for outcome in known.values()) > 400
    assert len(outcomes) > 8  # and many are refused, each for a reason of its own
