"""The decoder: what follows from depth alone, packing, windows, caches, and what its parts say of themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import choose
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import logical_axes, parameter_roles, parameter_scales, parameters, stacked_parts

VARIANTS: list[dict[str, Any]] = [
    {}, {"kv_heads": 1, "qk_norm": "whole", "norm_place": "reordered"}, {"norm": "layer", "mlp": "gelu", "mlp_bias": True, "attention_bias": "all"},
    {"positions": "learned", "mlp": "gelu_tanh", "tied": True}, {"parallel": True, "qk_norm": "none"}, {"norm_place": "post", "attention_bias": "qkv"},
    {"window": 3}, {"window": 4, "window_layers": [1]}, {"positions": "none", "head_bias": True},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
]  # fmt: skip


def small(**options: Any) -> Decoder:
    made = Decoder(50, 3, **({"depth": 2, "width": 32, "heads": 4, "ffn": 48, "length": 64} | options)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    return made


def packed() -> Batch:
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 5 + [2] * 8 + [3] * 3, [1] * 10 + [2] * 4 + [0] * 2])
    positions = torch.stack([torch.cat([torch.arange(int(n)) for n in row.unique_consecutive(return_counts=True)[1]]) for row in segments])
    return Batch(tokens, positions, segments)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_a_document_changes_no_logit_of_another(options):
    model, batch = small(**options), packed()
    before = model(batch).logits()
    tokens = batch.tokens.clone()
    tokens[0, 5:13] = (tokens[0, 5:13] + 7) % 50
    after = model(replace(batch, tokens=tokens)).logits()
    other = batch.segments != 2
    other[1] = True
    assert torch.equal(before[other], after[other])
    assert (before[0, 5:13] != after[0, 5:13]).any(-1).all()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_packed_documents_equal_documents_alone(options):
    model, batch = small(**options), packed()
    logits = model(batch).logits()
    for row, start, stop in ((0, 0, 5), (0, 5, 13), (0, 13, 16), (1, 0, 10), (1, 10, 14)):
        assert (logits[row, start:stop] - model(batch.tokens[row : row + 1, start:stop])[0]).abs().max() < 1e-5


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_no_token_sees_a_later_one(options):
    model = small(**options)
    tokens = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    same = (model(tokens) == model(changed)).all(-1)[0]
    assert same[:6].all()
    assert not same[6]


class Ragged:
    """A cache of fixed width in which each row fills columns of its own."""

    columns = 24

    def __init__(self, rows: int) -> None:
        self.length = torch.zeros(rows, dtype=torch.long)
        self.held: dict[int, list[Tensor]] = {}

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        rows, heads, new, size = key.shape
        held = self.held.setdefault(layer, [torch.full((rows, heads, self.columns, size), 1e3) for _ in range(2)])
        where = self.length[:, None] + torch.arange(new)
        for place, given in zip(held, (key, value), strict=True):
            place[torch.arange(rows)[:, None], :, where] = given.transpose(1, 2)
        return held[0], held[1]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@torch.no_grad()
def test_rows_that_stand_at_different_columns_of_a_fixed_cache(options):
    model, cache = small(**options), Ragged(2)
    rows = [torch.randint(0, 50, (1, n), generator=torch.Generator().manual_seed(n)) for n in (9, 5)]
    first = torch.zeros(2, 8, dtype=torch.long)
    first[0], first[1, :4] = rows[0][0, :8], rows[1][0, :4]
    place = torch.arange(8).expand(2, 8)
    model(Batch(first, place, (place < torch.tensor([[8], [4]])).long()), cache)
    cache.length = torch.tensor([8, 4])
    last = torch.cat([row[:, -1:] for row in rows])
    got = model(Batch(last, cache.length[:, None], torch.ones(2, 1, dtype=torch.long)), cache).logits()
    for row, tokens in enumerate(rows):
        assert (got[row, -1] - model(tokens)[0, -1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("depth", "width", "heads", "kv_heads", "ffn"), [(1, 128, 2, 2, 320), (4, 256, 4, 4, 704), (12, 768, 12, 12, 2048), (32, 2048, 32, 8, 5440)]
)
def test_depth_alone_gives_a_model(depth, width, heads, kv_heads, ffn):
    with torch.device("meta"):
        model = Decoder(8192, depth=depth)
    assert [model.options[k] for k in ("width", "heads", "kv_heads", "ffn", "head_size")] == [width, heads, kv_heads, ffn, 64]
    with torch.device("meta"):
        assert Decoder(8192, **model.options).options == model.options


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"heads": 4, "kv_heads": 3}, "kv_heads"), ({"depth": 0}, "depth"), ({"window": 0}, "window"), ({"window": 4, "window_layers": [2]}, "window_layers"),
        ({"head_size": 7, "heads": 2}, "head_size"), ({"parallel": True, "norm_place": "post"}, "parallel"),
        ({"positions": "none", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "lineal"}}, "rope_type"), ({"rope_scaling": {"rope_type": "linear"}}, "factor"), ({"width": 0}, "width"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"), ({"ahead": -1}, "ahead"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "beta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "factor"), ({"norm_eps": -1.0}, "norm_eps"), ({"theta": 0.0}, "theta"),
        ({"tied": True, "head_bias": True, "vocabulary": 0}, "vocabulary"),
    ],
)  # fmt: skip
def test_impossible_options_are_named(options, key):
    vocabulary = options.pop("vocabulary", 50)
    with pytest.raises(RecipeError, match=key):
        Decoder(vocabulary, **({"depth": 2, "width": 32, "heads": 4} | options))


def test_rows_longer_than_learned_positions_are_refused():
    with pytest.raises(RecipeError, match="learned positions"):
        small(positions="learned", length=8)(torch.zeros(1, 9, dtype=torch.long))


def test_initial_values_depend_on_seed_and_name_only():
    one, two, other = Decoder(50, 1, depth=2), Decoder(50, 1, depth=3, width=128), Decoder(50, 2, depth=2)
    assert torch.equal(one.embed.weight, two.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    with torch.device("meta"):
        late = Decoder(50, 1, depth=2)
    late.to_empty(device="cpu").initialise(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), late.parameters(), strict=True))


@pytest.mark.parametrize("options", [*VARIANTS, {"ahead": 1}], ids=str)
def test_every_parameter_has_axes_a_role_and_a_scale(options):
    model = small(**options)
    axes, roles, scales = logical_axes(model), parameter_roles(model), parameter_scales(model)
    shapes = {name: value.shape for name, value, *_ in parameters(model)}
    assert axes.keys() == roles.keys() == scales.keys() == shapes.keys() == dict(model.named_parameters()).keys()
    for name, shape in shapes.items():
        assert len(axes[name]) == len(shape)
        assert "none" not in axes[name]
        assert (roles[name] == "vector") == (len(shape) == 1)
    for name, parts in stacked_parts(model).items():
        assert sum(parts) == shapes[name][0]


def test_operations_are_counted():
    model = small(kv_heads=2, ahead=0)
    matrices = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48) + 50 * 32
    assert model.flops_per_token(15) == 6 * matrices + 2 * 12 * 32 * 8
    assert small(kv_heads=2, tied=True).flops_per_token(15) == model.flops_per_token(15)
    seen = [min(i, 4) for i in range(1, 16)]
    assert small(kv_heads=2, window=4).flops_per_token(15) == pytest.approx(6 * matrices + 2 * 12 * 32 * sum(seen) / 15)


@pytest.mark.parametrize("packing", [False, True])
def test_one_compilation_serves_all_blocks(packing):
    """Blocks are compiled one by one; a second one must not compile again, and nothing may break the graph."""
    torch._dynamo.reset()
    counter = CompileCounter()
    model, batch = small(depth=4), packed()
    wanted = model(batch).logits()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    batch = batch if packing else replace(batch, segments=None)
    got = model(batch).logits()
    assert counter.frame_count == 1
    assert not packing or (got - wanted).abs().max() < 1e-5


def test_the_recipe_checks_its_options():
    assert choose("models/families", {"name": "decoder", "depth": 2, "kv_heads": 1}).options["kv_heads"] == 1
