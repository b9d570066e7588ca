"""Every layout trains the model that one process trains: loss, each gradient, norm and updated weights, to 1e-5 in float32.

The layouts are data: add a line. `python -m tests.ranks.test_layouts` writes them as a table into docs/parallel.md.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from bessemer.core.mesh import Mesh
from tests.ranks import layouts


class Case(NamedTuple):
    """One layout of one recipe."""

    mesh: dict[str, int]
    parallel: dict[str, Any] = {}
    model: dict[str, Any] = {}
    optim: str = "adamw"
    objective: str = "next_token"
    compile: bool = False


EXPERTS = {"count": 4, "active": 2, "ffn": 24, "shared": 1, "balance": 0.1, "z": 0.01, "bias": 0.05}
DEEP = {"depth": 4}

BEGIN, END = "<!-- layouts -->", "<!-- /layouts -->"

CASES = [
    Case({"data": 2}),
    Case({"data": 2}, {"shard": "none"}),
    Case({"data": 2}, {"exchange": "network"}),
    Case({"data": 4}, {"shard": "none", "exchange": "network"}),
    Case({"data": 4, "expert": 2}, {"exchange": "network"}, {"experts": EXPERTS}),
    Case({"data": 4}, {"shard": "state"}),
    Case({"data": 4}, {"shard": "grad"}, {"tied": True}),
    Case({"data": 4}, {}, {"tied": True}),
    Case({"data": 4}, {"shard": "levels", "pair": 2, "node": 2}),
    Case({"data": 4}, {"shard": "levels", "pair": 2, "node": 4}, {"tied": True}, optim="muon"),
    Case({"data": 8}, {"shard": "levels", "pair": 2, "node": 4}, {"ahead": 1}, objective="multi_token"),
    Case({"replica": 2, "data": 2, "context": 2}, {"shard": "levels", "pair": 1, "node": 2}, optim="muon"),
    Case({"data": 4, "tensor": 2}, {"shard": "levels", "pair": 2, "node": 2}, {"experts": EXPERTS}),
    Case({"data": 4, "expert": 2}, {"shard": "levels", "pair": 2, "node": 4}, {"experts": EXPERTS}, optim="muon"),
    Case({"pipe": 2, "data": 4}, {"shard": "levels", "pair": 2, "node": 2}),
    Case({"replica": 2, "data": 2}),
    Case({"replica": 4}, {"shard": "none"}, {"qk_norm": "whole"}),
    Case({"tensor": 2}),
    Case({"tensor": 2}, {}, {"tied": True, "mlp": "gelu", "mlp_bias": True, "attention_bias": "all", "norm": "layer", "qk_norm": "none"}),
    Case({"tensor": 2}, {}, {"qk_norm": "whole", "norm_place": "reordered"}),
    Case({"tensor": 2}, {}, {"ahead": 1}, objective="multi_token"),
    Case({"tensor": 2, "data": 2}),
    Case({"tensor": 2, "data": 2}, {"shard": "none"}, {"tied": True}),
    Case({"tensor": 2, "data": 2}, {"shard": "state"}, {"positions": "learned", "parallel": True}),
    Case({"tensor": 2, "data": 2, "replica": 2}, {}, {"head_bias": True}),
    Case({"tensor": 4}, {}, {"kv_heads": 4}),
    Case({"tensor": 2}, {"pieces": 3}, {"mlp": "gelu", "mlp_bias": True, "attention_bias": "all"}),
    Case({"tensor": 4, "data": 2}, {"pieces": 2, "remat": "selective"}, {"kv_heads": 4}, optim="muon"),
    Case({"tensor": 2}, {"pieces": 2}, {"tied": True}, compile=True),
    Case({"pipe": 2}),
    Case({"pipe": 2}, {"pipe": "gpipe"}, {"tied": True}),
    Case({"pipe": 2}, {"pipe": "interleaved"}, DEEP),
    Case({"pipe": 2}, {"pipe": "zb1p"}, DEEP),
    Case({"pipe": 2}, {"pipe": "zbv"}, DEEP | {"tied": True}),
    Case({"pipe": 2}, {"pipe": "dualpipev"}, DEEP),
    Case({"pipe": 2}, {"pipe": "interleaved", "cuts": [1, 4, 5]}, {"depth": 6}),
    Case({"pipe": 2, "data": 2}, {"cuts": "measured"}, {"depth": 3, "experts": EXPERTS | {"dense": 1}, "ahead": 1}, objective="multi_token"),
    Case({"pipe": 4}, {}, DEEP | {"positions": "learned"}, optim="muon"),
    Case({"pipe": 2, "data": 2}, {}, {"tied": True}, optim="muon"),
    Case({"pipe": 2, "data": 2}, {"pipe": "zb1p", "shard": "none"}, DEEP | {"tied": True}),
    Case({"pipe": 2, "data": 2}, {"pipe": "zb1p"}, DEEP),
    Case({"pipe": 2, "data": 2}, {"pipe": "zbv"}, DEEP),
    Case({"pipe": 2, "data": 2}, {"pipe": "dualpipev"}, DEEP),
    Case({"pipe": 2, "tensor": 2}, {}, {"ahead": 1}, objective="multi_token", optim="muon"),
    Case({"pipe": 2, "context": 2}, {"context": "ring"}),
    Case({"pipe": 2, "data": 2, "tensor": 2}, {"pipe": "interleaved"}, DEEP | {"tied": True}),
    Case({"pipe": 2, "data": 2, "expert": 2}, {}, {"experts": EXPERTS}),
    Case({"data": 2}, {"remat": "full"}),
    Case({"tensor": 2, "data": 2}, {"remat": "selective"}),
    Case({"data": 2}, {"remat": "full"}, {"experts": EXPERTS}),
    Case({"tensor": 2}, {"remat": "selective"}, {"experts": EXPERTS}),
    Case({"pipe": 2, "data": 2}, {"remat": "full"}, {"tied": True}),
    Case({"data": 2}, compile=True),
    Case({"tensor": 2, "data": 2}, compile=True),
    Case({"data": 2}, optim="muon"),
    Case({"data": 4}, {"shard": "none"}, optim="muon"),
    Case({"replica": 2, "data": 2}, {"shard": "grad"}, {"tied": True}, optim="muon"),
    Case({"tensor": 2}, optim="muon"),
    Case({"tensor": 2, "data": 2}, {}, {"ahead": 1}, objective="multi_token", optim="muon"),
    Case({"tensor": 2, "data": 4}, {"shard": "state"}, {"kv_heads": 4}, optim="muon"),
    Case({"context": 2}),
    Case({"context": 4}, {"context": "ring"}, {"tied": True, "window": 6, "window_layers": [0]}),
    Case({"context": 2}, {"context": "ulysses", "shard": "none"}, {"ahead": 2}, objective="multi_token"),
    Case({"context": 4}, {"context": "both"}, {"kv_heads": 4}, optim="muon"),
    Case({"context": 2, "data": 2}, {"context": "ring", "shard": "state"}, {"positions": "learned"}),
    Case({"context": 2, "tensor": 2}, {"context": "ring"}, {"qk_norm": "whole"}),
    Case({"context": 2, "tensor": 2, "data": 2}, {"context": "ulysses"}, {"tied": True}, optim="muon"),
    Case({"context": 2, "replica": 2, "tensor": 2}, {"context": "gather"}, {"ahead": 1}, objective="multi_token"),
    Case({"context": 8}, {"context": "ring"}),
    Case({"data": 2}, {}, {"experts": EXPERTS}),
    Case({"data": 4}, {"shard": "none"}, {"experts": EXPERTS | {"capacity": 0.8}}, optim="muon"),
    Case({"context": 2}, {"context": "ring"}, {"experts": EXPERTS | {"capacity": 0.8}}),
    Case({"tensor": 2}, {}, {"experts": EXPERTS}),
    Case({"tensor": 2, "context": 2}, {}, {"experts": EXPERTS | {"capacity": 0.8}, "ahead": 1}, objective="multi_token"),
    Case({"data": 2, "expert": 2}, {}, {"experts": EXPERTS}),
    Case({"data": 4, "expert": 2}, {}, {"experts": EXPERTS | {"zero": 2}}, optim="muon"),
    Case({"data": 4, "expert": 4}, {"shard": "none"}, {"experts": EXPERTS}),
    Case({"replica": 2, "data": 2, "expert": 2}, {"shard": "state"}, {"experts": EXPERTS}),
    Case({"tensor": 2, "expert": 2}, {}, {"experts": EXPERTS}, optim="muon"),
    Case({"tensor": 2, "data": 2, "expert": 4}, {}, {"experts": EXPERTS, "tied": True}, optim="muon"),
    Case({"tensor": 2, "data": 2, "context": 2, "expert": 4}, {"context": "ring"}, {"experts": EXPERTS | {"capacity": 0.8}}),
    Case({"tensor": 2, "data": 4, "expert": 2}, {"shard": "none"}, {"experts": EXPERTS}),
    Case({"data": 2, "expert_tensor": 2}, {}, {"experts": EXPERTS}),
    Case({"data": 4, "expert": 2, "expert_tensor": 2}, {"shard": "none"}, {"experts": EXPERTS | {"zero": 2}}),
    Case({"tensor": 2, "data": 2, "expert_tensor": 2}, {}, {"experts": EXPERTS | {"capacity": 0.8}}, optim="muon"),
    Case({"data": 8, "expert": 2, "expert_tensor": 2}, {"shard": "grad"}, {"experts": EXPERTS, "tied": True}, optim="muon"),
    Case({"replica": 2, "context": 2, "tensor": 2, "expert_tensor": 4}, {}, {"experts": EXPERTS, "mlp": "gelu"}),
    Case({"replica": 2, "data": 4, "expert_tensor": 2}, {"shard": "levels", "pair": 1, "node": 2}, {"experts": EXPERTS}),
]


def recipe(case: Case) -> list[str]:
    """What the case's recipe says beside its mesh."""
    words = [f"{k}={v}" for k, v in case.model.items() if k != "experts"]
    if "experts" in case.model:
        words.append(" ".join(["experts", *(f"{k}={v}" for k, v in case.model["experts"].items() if k not in EXPERTS)]))
    return words + [case.optim] * (case.optim != "adamw") + [case.objective] * (case.objective != "next_token") + ["compiled"] * case.compile


def name(case: Case) -> str:
    return ", ".join([Mesh.of(case.mesh).describe(), *(f"{k}={v}" for k, v in case.parallel.items()), *recipe(case)])


def run(mesh: dict[str, int], case: Case) -> dict[str, Any]:
    optim = {"adamw": layouts.ADAMW, "muon": layouts.MUON}[case.optim]
    steps = layouts.COMPILED_STEPS if case.compile else layouts.STEPS
    return layouts.train(Mesh.of(mesh), case.parallel if mesh else {}, case.model, optim, case.objective, case.compile and bool(mesh), steps)


@pytest.fixture(scope="module")
def serial():
    """One process's results by recipe, computed once each."""
    known: dict[str, dict[str, Any]] = {}

    def find(case: Case) -> dict[str, Any]:
        key = str((case.model, case.optim, case.objective, case.compile))
        if key not in known:
            known[key] = run({}, case)
        return known[key]

    return find


def assert_equal(got: Any, wanted: Any, where: str, tolerance: float) -> None:
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys(), where
        for key in wanted:
            assert_equal(got[key], wanted[key], f"{where} {key}", tolerance)
    elif isinstance(wanted, torch.Tensor):
        assert got.shape == wanted.shape, where
        assert (got - wanted).norm() <= tolerance * wanted.norm(), f"{where}: {(got - wanted).norm() / wanted.norm():.2e}"
    else:
        assert got == pytest.approx(wanted, rel=tolerance), where


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_layout_trains_as_one_process_does(ranks, serial, case):
    got = ranks(run, case.mesh, case, count=Mesh.of(case.mesh).ranks)[0]
    assert_equal(got, serial(case), "", 1e-5)


def test_many_blocks_are_compiled_as_one(ranks):
    """Under tensor parallelism too: past torch's limit of eight the rest would run uncompiled."""
    arguments = ({}, {"depth": 10}, layouts.ADAMW, "next_token", True, layouts.COMPILED_STEPS[:1])
    found = ranks(layouts.train, Mesh.of({"tensor": 2}), *arguments, count=2)
    assert found[0]


def table() -> str:
    """The layouts for docs/parallel.md."""
    lines = [
        f"{len(CASES)} layouts, each a row of `CASES` in tests/ranks/test_layouts.py.",
        "",
        "| ranks | mesh | parallel | recipe |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        mesh, parallel = Mesh.of(case.mesh), ", ".join(f"{k}={v}" for k, v in case.parallel.items())
        lines.append(f"| {mesh.ranks} | {mesh.describe()} | {parallel} | {', '.join(recipe(case))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(__file__).resolve().parents[2] / "docs" / "parallel.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")
