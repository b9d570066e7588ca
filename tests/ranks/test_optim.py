"""Every optimizer moves parameters that ranks hold pieces of as one process moves the whole, and keeps as much state, all ranks together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from bessemer.core import registry, shards
from bessemer.core.mesh import Mesh, World
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_roles
from bessemer.optim import _owners
from bessemer.parallel.order import Parallel, spread
from bessemer.train import optimizers
from tests.ranks import layouts

SMALL = {"rank": 4, "refresh": 3, "every": 3}
"""Options that make a method do on small matrices what it does on large ones."""
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "wide": ((32, 128), ()),
    "tall": ((84, 12), ()),
    "stacked": ((96, 64), (64, 16, 16)),
    "few": ((3, 8), ()),  # rows that not every rank has
    "experts": ((4, 24, 16), (12, 12)),
    "vector": ((28,), ()),
    "one": ((1,), ()),
}
CUTS: dict[str, list[Any]] = {
    "rows": [("shard", 4), {}],
    "columns": [("tensor", 4), {"wide": (1,), "tall": (None,), "vector": (None,), "few": (None,), "one": (None,)}],
    "rows and parts": [("shard", 2, "tensor", 2), {"wide": (0, 1), "vector": (0, None), "few": (0, None), "one": (0, None)}],
    "copies": [("replica", 2, "shard", 2), {}],
}
"""The mesh's axes, and along which dimension of a parameter each cuts it, if not rows of all."""


def tensors(draw: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=draw) / max(1, shape[-1]) ** 0.5 for name, (shape, _) in SHAPES.items()}


def dims(cut: str, name: str) -> tuple[int | None, ...]:
    (*axes,), given = CUTS[cut]
    count = len(axes) // 2
    rows = 1 if name == "experts" and cut != "rows" else 0
    return given.get(name, tuple(None if axes[2 * n] == "replica" else rows for n in range(count)))


def laid(value: Tensor, mesh: DeviceMesh, dims: tuple[int | None, ...], parts: tuple[int, ...]) -> Tensor:
    """This rank's piece of a tensor that all have whole."""
    places = [Replicate() if dim is None else Shard(dim) for dim in dims]

    def of(piece: Tensor) -> DTensor:
        return DTensor.from_local(piece, mesh, places, run_check=False, shape=value.shape, stride=value.stride())

    return of(value[shards.grid(shards.place(of(value), mesh.get_coordinate() or (), parts))].contiguous())


def moved(name: str, options: dict[str, Any], cut: str | None, steps: int = 5) -> dict[str, Any]:
    """Parameters after some steps along gradients that are the same however they lie, and bytes of state."""
    draw = torch.Generator().manual_seed(7)
    mesh = None
    if cut is not None:
        axes = CUTS[cut][0]
        mesh = DeviceMesh("cpu", torch.arange(4).view(axes[1::2]), mesh_dim_names=axes[::2])

    def lay(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values if mesh is None else {n: laid(v, mesh, dims(str(cut), n), SHAPES[n][1]) for n, v in values.items()}

    made = {n: nn.Parameter(v) for n, v in lay(tensors(draw)).items() if name != "muon" or v.ndim > 1}
    choice = registry.choose("optim", {"name": name, **options})
    halves = [list(made)[:3], list(made)[3:]]
    optimizer = choice([{"params": [made[n] for n in half], "parts": [SHAPES[n][1] for n in half], "names": half} for half in halves])
    optimizer.param_groups[1]["lr"] *= 0.5
    for step in range(steps):
        values = tensors(draw)
        if step == 2 and name != "adamw":
            values["wide"][0, 0] = float("nan")  # which one rank alone sees
        for n, gradient in lay(values).items():
            if n in made:
                made[n].grad = None if (n, step) == ("tall", 1) else gradient
        optimizer.step()
    assert set(optimizer.state) <= set(made.values())
    kept = {n: sum(v.nbytes for v in optimizer.state[p].values() if isinstance(v, Tensor)) for n, p in made.items() if p in optimizer.state}
    return {
        "weights": {n: shards.whole(p.detach(), SHAPES[n][1]) for n, p in made.items()},
        "kept": kept,
        "cut": [n for n, p in made.items() if shards.pieces(p) > 1],
        "whole": getattr(optimizer, "whole", False),
    }


def options_of(name: str) -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key in registry.schema(registry.find("optim", name)).model_fields}


CASES = [(name, options_of(name)) for name in registry.names("optim")] + [
    (name, {"states": "8bit"}) for name in ("lion", "lamb", "sgd_sai", "galore", "sophia", "schedule_free_adamw")
]


def all_moved(cases: list[tuple[str, dict[str, Any]]], cut: str, room: int) -> list[dict[str, Any]]:
    _owners.ROUND = room
    return [moved(name, options, cut) for name, options in cases]


@pytest.mark.parametrize(
    ("cut", "room"), [("rows", 1 << 24), ("rows", 1 << 10), ("columns", 1 << 24), ("rows and parts", 1 << 24), ("copies", 1 << 10)]
)
def test_pieces_move_as_the_whole_does(ranks, cut, room):
    every = ranks(all_moved, CASES, cut, room, count=4)
    assert len(every[0][0]["cut"]) >= 3
    for number, (name, options) in enumerate(CASES):
        alone, found = moved(name, options, None), [each[number] for each in every]
        for key, value in alone["weights"].items():
            if found[0]["whole"]:
                assert torch.equal(found[0]["weights"][key], value), (name, options, key)  # the very same operations
            else:
                torch.testing.assert_close(found[0]["weights"][key], value, rtol=1e-5, atol=1e-6, msg=lambda said, n=name, k=key: f"{n}, {k}: {said}")
        if found[0]["whole"]:
            for key, size in alone["kept"].items():
                assert [each["kept"].get(key) for each in found].count(size) == (1 if key in found[0]["cut"] else 4), (name, options, key)
            holders = [sum(key in each["kept"] for key in found[0]["cut"]) for each in found]
            assert max(holders) < sum(holders), (name, options)


def large(cut: str | None) -> dict[str, Any]:
    """Muon on matrices that processors multiply in bfloat16, which makes a last digit of what goes in a hundredth of what comes out."""
    before = dict(SHAPES)
    SHAPES.clear()
    SHAPES.update(wide=((256, 512), ()), tall=((512, 200), ()), stacked=((448, 224), (224, 224)))
    try:
        return moved("muon", {}, cut)
    finally:
        SHAPES.clear()
        SHAPES.update(before)


def test_large_matrices_are_orthogonalised_as_whole_ones(ranks):
    alone, found = large(None), ranks(large, "rows", count=4)[0]
    assert found["cut"] == ["wide", "tall", "stacked"]
    for key, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-5, atol=1e-6)


def sent(name: str) -> tuple[int, int]:
    """Numbers that this rank sends to others in a step, and numbers of the parameters."""
    mesh, found, real = DeviceMesh("cpu", torch.arange(4), mesh_dim_names=("shard",)), [0], _owners.dist.all_to_all_single

    def count(received: Tensor, send: Tensor, taken: list[int], given: list[int], group: Any) -> None:
        found[0] += sum(given) - given[group.rank()]
        real(received, send, taken, given, group=group)

    params = [nn.Parameter(laid(torch.ones(shape), mesh, (0,), ())) for shape in [(32, 64), (64, 16), (48, 8)]]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = registry.choose("optim", name)([{"params": params}])
    _owners.dist.all_to_all_single = count
    try:
        optimizer.step()
    finally:
        _owners.dist.all_to_all_single = real
    return found[0], sum(p.numel() for p in params)


@pytest.mark.parametrize(("name", "columns"), [("galore", 3), ("muon", 2), ("lion", 0)])
def test_what_travels_is_as_docs_parallel_says(ranks, name, columns):
    every = ranks(sent, name, count=4)
    assert sum(numbers for numbers, _ in every) == columns * every[0][1] * 3 // 4


EXPERTS = {"count": 4, "active": 2, "ffn": 24, "bias": 0.0}


def trained(mesh: dict[str, int], steps: int) -> dict[str, dict[str, Tensor]]:
    """A decoder with experts after some steps of each optimizer."""
    found = {}
    for name, options in CASES[: len(registry.names("optim"))]:
        rule = {"name": name, **options} if name != "shampoo" else {"name": name, "every": 1}  # vectors of no gradient yet are anybody's choice
        optim = [{"role": "matrix", **rule}, {"name": "adamw", "eps": 1e-3}] if name in ("muon", "soap") else [rule]
        options_of_model = {"experts": EXPERTS, "depth": 1}
        found[name] = layouts.train(Mesh.of(mesh), {}, options_of_model, optim, "next_token", False, layouts.STEPS[:steps])
    return {key: each.get("weights", {}) for key, each in found.items()}


def test_a_decoder_with_experts_trains_on_ranks_as_in_one_process(ranks):
    """Every tensor's whole way is that of one process but for a part; that of rules that divide a gradient by its size is longer where it is rounding."""
    begun, alone = trained({}, 0), trained({}, 2)
    for key, weights in ranks(trained, {"data": 2, "tensor": 2, "expert": 2}, 2, count=4)[0].items():
        for name, value in alone[key].items():
            way = (value - begun[key][name]).norm()
            away = (weights[name] - value).norm() / way.clamp(min=1e-7)
            assert away <= 0.05, (key, name, float(away))


def by_stages(mesh: dict[str, int], steps: int) -> dict[str, Tensor]:
    optim = [{"name": "sgd_sai", "lr": 1.0}]
    return layouts.train(Mesh.of(mesh), {}, {"depth": 4}, optim, "next_token", False, layouts.STEPS[:steps]).get("weights", {})


def test_factors_are_relative_to_the_largest_of_all_stages(ranks):
    """The middle stages of four hold neither the embedding nor the head, whose factors are the largest."""
    begun, alone, found = by_stages({}, 0), by_stages({}, 1), ranks(by_stages, {"pipe": 4}, 1, count=4)[0]
    for name, value in alone.items():
        way = (value - begun[name]).norm()
        assert (found[name] - value).norm() <= 2e-3 * way, name


def bytes_held(mesh: dict[str, int], parallel: dict[str, Any], name: str) -> int:
    """Bytes of state of the whole model after a step."""
    world = World(Mesh.of(mesh))
    model = Decoder(layouts.VOCABULARY, 3, **layouts.MODEL)
    spread(model, world, Parallel(**parallel))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    moving = optimizers.build(model, [registry.choose("optim", name)], parameter_roles(model))
    moving.step()
    return moving.state_bytes(world)


@pytest.mark.parametrize("name", ["adamw8bit", "galore", "lamb"])
def test_state_is_counted_once_wherever_it_lies(ranks, name):
    alone = bytes_held({}, {}, name)
    for mesh, parallel in [
        ({"data": 2, "tensor": 2}, {"shard": "none"}),
        ({"data": 4}, {}),
        ({"replica": 2, "data": 2}, {}),
        ({"pipe": 2, "data": 2}, {}),
    ]:
        assert ranks(bytes_held, mesh, parallel, name, count=4) == [alone] * 4, mesh
