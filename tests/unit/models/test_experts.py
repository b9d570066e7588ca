"""Layers of experts: each token gets what its experts alone would give it, and balance doesn't depend on how a batch is cut."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bessemer.core import device, registry
from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.models.families.decoder import Decoder
from bessemer.models.layers import grouped
from bessemer.models.layers.attention import Context
from bessemer.models.layers.experts import MixtureOfExperts, mixtures, resolve
from bessemer.models.package import build, save_model
from bessemer.models.transfer import parameter_scales, stacked_parts
from bessemer.optim._newton_schulz import orthogonalise
from bessemer.optim.muon import Muon
from bessemer.train.engine import Engine
from tests.contract.test_objectives import ragged

PLAIN = Context(None, None, None)
WIDTH, LENGTH = 32, 20


def layer(kind="swiglu", **table) -> MixtureOfExperts:
    built = MixtureOfExperts(WIDTH, kind, resolve({"count": 8, **table}, 48))
    draw = torch.Generator().manual_seed(3)
    for parameter in built.parameters():
        parameter.data.normal_(0.0, 0.2, generator=draw)
    return built


def tokens(rows=3, seed=0) -> torch.Tensor:
    return torch.randn(rows, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def expert(built: MixtureOfExperts, number: int, x: torch.Tensor) -> torch.Tensor:
    hidden = x @ built.up.weight[number].T
    if built.kind == "swiglu":
        gate, up = hidden.chunk(2, -1)
        hidden = F.silu(gate) * up
    else:
        hidden = F.gelu(hidden, approximate="tanh" if built.kind == "gelu_tanh" else "none")
    return hidden @ built.down.weight[number].T


def one_by_one(built: MixtureOfExperts, x: torch.Tensor, context: Context = PLAIN) -> torch.Tensor:
    """Every token alone, every expert alone."""
    routing, _ = built.router(x, context)
    rows = []
    for row, place in itertools.product(range(x.shape[0]), range(x.shape[1])):
        token, out = x[row, place], torch.zeros(WIDTH)
        for number, weight in zip(routing.choice[row, place].tolist(), routing.weight[row, place], strict=True):
            out = out + weight * (token if number >= built.count else expert(built, number, token))
        rows.append(out)
    found = torch.stack(rows).view_as(x)
    return found if built.shared is None else found + built.shared(x)


TABLES = [
    {},
    {"scores": "softmax"},
    {"scores": "softmax", "normalise": False, "active": 3},
    {"shared": 2, "scale": 2.5},
    {"zero": 4, "active": 4},
    {"capacity": 0.5},
    {"zero": 4, "active": 4, "capacity": 0.4, "scores": "softmax"},
    {"count": 1, "active": 1},
]


@pytest.mark.parametrize("kind", ["swiglu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_tokens_get_what_their_experts_alone_give(kind, table):
    built = layer(kind, **table)
    context = PLAIN._replace(valid=torch.arange(LENGTH).expand(3, LENGTH) < torch.tensor([20, 13, 0])[:, None])
    x = tokens().requires_grad_()
    draw = torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(9))
    names, held = zip(*[(n, p) for n, p in built.named_parameters()], strict=True)
    expected = one_by_one(built, x, context)
    wanted = torch.autograd.grad((expected * draw).sum(), [x, *held], allow_unused=True)
    out = built(x, context)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad((out * draw).sum(), [x, *held], allow_unused=True)
    for name, a, b in zip(["x", *names], found, wanted, strict=True):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b, rtol=1e-4, atol=1e-5, msg=name)


def test_one_expert_is_the_dense_layer():
    from bessemer.models.layers.mlp import SwiGLU

    built, dense = layer(count=1, active=1), SwiGLU(WIDTH, 48, False)
    dense.gate_up.weight.data, dense.down.weight.data = built.up.weight.data[0], built.down.weight.data[0]
    torch.testing.assert_close(built(tokens(), PLAIN), dense(tokens()))


@pytest.mark.parametrize("kernel", [True, False])
def test_grouped_products_equal_one_after_the_other(kernel, monkeypatch):
    if kernel and not device.has_grouped_products(torch.float32):
        pytest.skip("this machine has no grouped product")
    monkeypatch.setattr(device, "has_grouped_products", lambda dtype: kernel)
    counts = torch.tensor([3, 0, 5, 0, 1])
    x = torch.randn(9, 16, requires_grad=True)
    weight = torch.randn(5, 24, 16, requires_grad=True)
    expected = torch.cat([part @ w.T for part, w in zip(x.split(counts.tolist()), weight, strict=True)])
    found = grouped.grouped_product(x, weight, counts)
    torch.testing.assert_close(found, expected)
    draw = torch.randn(9, 24)
    for a, b in zip(torch.autograd.grad((found * draw).sum(), [x, weight]), torch.autograd.grad((expected * draw).sum(), [x, weight]), strict=True):
        torch.testing.assert_close(a, b)
    assert grouped.grouped_product(x[:0], weight, counts * 0).shape == (0, 24)


def mixtral(state: dict[str, torch.Tensor], scores: str):
    transformers = pytest.importorskip("transformers")
    if scores == "softmax":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as Block

        config = transformers.MixtralConfig(hidden_size=WIDTH, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2)
        names = {"gate.weight": "router.gate.weight"}
    else:
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE as Block

        config = transformers.DeepseekV3Config(
            hidden_size=WIDTH, moe_intermediate_size=64, n_routed_experts=8, num_local_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1,
            routed_scaling_factor=2.5, norm_topk_prob=True, n_shared_experts=1,
        )  # fmt: skip
        names = {
            "gate.weight": "router.gate.weight",
            "gate.e_score_correction_bias": "router.bias",
            "shared_experts.down_proj.weight": "shared.down.weight",
        }
    theirs = Block(config)
    gate, up = state["shared.gate_up.weight"].chunk(2) if "shared.gate_up.weight" in state else (None, None)
    given = {their: state[our] for their, our in names.items()} | {
        "experts.gate_up_proj": state["up.weight"],
        "experts.down_proj": state["down.weight"],
    }
    if gate is not None:
        given |= {"shared_experts.gate_proj.weight": gate, "shared_experts.up_proj.weight": up}
    theirs.load_state_dict(given)
    return theirs


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_layer_equals_mixtral_and_deepseek_v3(scores):
    built = layer(ffn=64, scores=scores, active=2, **({"shared": 1, "scale": 2.5} if scores == "sigmoid" else {"bias": 0.0}))
    if built.router.bias is not None:
        built.router.bias.copy_(torch.linspace(-0.3, 0.3, 8))
    theirs = mixtral(built.state_dict(), scores)
    torch.testing.assert_close(built(tokens(), PLAIN), theirs(tokens()), rtol=1e-5, atol=1e-5)


# ---- what the whole model learns from


TRAINED = {"count": 8, "active": 2, "balance": 0.3, "z": 0.1, "shared": 1, "ffn": 32}


def model(**table) -> Decoder:
    return Decoder(64, 1, depth=3, width=32, heads=2, ffn=64, experts={**TRAINED, "dense": 1, **table}).train()


def learned(batches: list[Batch], **table):
    built = model(**table)
    engine = Engine(built, {"text": (registry.choose("objectives", "next_token")(), 1.0)}, torch.float32)
    result = engine.forward_backward(batches)
    built.after_step(None, None, result.counts)
    return built, result


@pytest.mark.parametrize("table", [{}, {"capacity": 0.7}, {"zero": 4, "active": 4}], ids=str)
@pytest.mark.parametrize("parts", [2, 5, 24])
def test_nothing_depends_on_how_rows_are_cut(table, parts):
    whole, expected = learned([ragged()], **table)
    edges = [round(24 * i / parts) for i in range(parts + 1)]
    split, found = learned([ragged().rows_of(a, b) for a, b in itertools.pairwise(edges)], **table)
    assert found.terms == pytest.approx(expected.terms, rel=1e-5)
    assert {"experts/balance", "experts/z", "experts/entropy", "experts/dropped"} <= found.terms.keys()
    assert (found.terms["experts/dropped"] > 0) == ("capacity" in table)
    for name, count in expected.counts.items():
        assert torch.equal(count, found.counts[name])
    for (name, a), b in zip(split.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    for name, a in split.named_buffers():
        assert torch.equal(a, dict(whole.named_buffers())[name])


def test_padding_counts_for_nothing():
    batch = ragged()
    _, expected = learned([batch])
    padding = batch.segments == 0
    _, found = learned([replace(batch, tokens=torch.where(padding, (batch.tokens + 5) % 64, batch.tokens))])
    assert found.terms == expected.terms
    demand = next(iter(found.counts.values()))[0]
    assert int(demand.sum()) == 2 * int((~padding).sum()) == 2 * int(batch.count("tokens"))


def test_balance_is_one_when_use_is_even_and_count_when_one_expert_gets_all():
    built = layer(active=1, scores="softmax").train()
    x = torch.zeros(1, 8, WIDTH)
    x[0, range(8), range(8)] = 1.0
    built.router.gate.weight.data.zero_()
    built.router.gate.weight.data[range(8), range(8)] = 50.0
    built(x, PLAIN)
    assert built.seen.balance.item() / 8 == pytest.approx(1.0)
    built(x[:, :1].expand(1, 8, WIDTH), PLAIN)
    assert built.seen.balance.item() / 8 == pytest.approx(8.0)
    assert float(built.seen.entropy) == pytest.approx(0.0, abs=1e-6)


def test_the_balance_loss_pulls_towards_even_use_and_alone_does_it():
    built = layer(scores="softmax", active=2, bias=0.0)
    optimizer = torch.optim.Adam([built.router.gate.weight], lr=0.02)
    x = tokens(16) + 1.0  # a common direction: the router begins with favourites
    first = None
    for _ in range(60):
        built(x, PLAIN)
        optimizer.zero_grad()
        (built.seen.balance / x[..., 0].numel()).backward()
        optimizer.step()
        first = first or unevenness(built.seen.demand)
    assert first > 1.0
    assert unevenness(built.seen.demand) < 0.35 * first


def unevenness(demand: torch.Tensor) -> float:
    share = demand / demand.sum() * len(demand)
    return float((share - 1).abs().max())


def test_the_bias_alone_evens_use_and_is_no_part_of_the_weights():
    built = layer(active=2, bias=0.02)
    x = tokens(16) + 1.0
    built(x, PLAIN)
    first = unevenness(built.seen.demand)
    for _ in range(100):
        built.router.nudge(built.seen.demand)
        built(x, PLAIN)
    assert first > 1.0
    assert unevenness(built.seen.demand) < 0.35 * first
    routing, _ = built.router(x, PLAIN)
    scores = F.linear(x, built.router.gate.weight).sigmoid().gather(-1, routing.choice)
    torch.testing.assert_close(routing.weight, scores / scores.sum(-1, keepdim=True))


def test_a_nudge_is_deepseek_s():
    built = layer(active=2, bias=0.01)
    built.router.nudge(torch.tensor([4, 4, 0, 8, 4, 4, 4, 4]))
    torch.testing.assert_close(built.router.bias, torch.tensor([0, 0, 0.01, -0.01, 0, 0, 0, 0]))


def test_zero_experts_come_to_the_wanted_share():
    built = layer(zero=8, active=4, real=2.5, bias=0.5)
    x = tokens(16)
    for _ in range(150):
        built(x, PLAIN)
        built.router.nudge(built.seen.demand)
    real = float(built.seen.demand[:8].sum()) / (16 * LENGTH)
    assert real == pytest.approx(2.5, abs=0.1)
    assert (built.router.bias[8:] == 0).all()


def test_capacity_is_first_come_first_served_in_each_row():
    built = layer(active=2, capacity=0.5)
    x = tokens(2)
    routing, seen = built.router(x, PLAIN)
    room = math.ceil(0.5 * LENGTH * 2 / 8)
    for row in range(2):
        used = [0] * 8
        for place, k in itertools.product(range(LENGTH), range(2)):
            number = int(routing.choice[row, place, k])
            assert bool(routing.kept[row, place, k]) == (used[number] < room)
            used[number] += 1
    assert int(seen.dropped.sum()) == int((~routing.kept).sum()) > 0
    assert built.eval().router(x, PLAIN)[0].kept is None


def test_a_later_token_changes_nothing_earlier():
    built = Decoder(64, 1, depth=2, width=32, heads=2, ffn=64, experts={"count": 4, "capacity": 0.6}).train()
    first = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(1))
    second = first.clone()
    second[0, 12:] = (second[0, 12:] + 1) % 64
    a, b = built(first), built(second)
    torch.testing.assert_close(a[:, :12], b[:, :12], rtol=1e-4, atol=1e-5)
    assert (a[:, 12:] - b[:, 12:]).abs().max().item() > 1e-2


# ---- its place in the rest


def test_saved_and_loaded_with_its_bias(tmp_path):
    built, _ = learned([ragged()])
    assert any(layer.router.bias.abs().sum() > 0 for layer in mixtures(built).values())
    save_model(built, tmp_path, dtype=None)
    back = build(tmp_path)
    assert back.options == built.options
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), back.state_dict().values(), strict=True))
    batch = ragged()
    assert torch.equal(back(batch).hidden, built.eval()(batch).hidden)


def test_muon_takes_every_expert_for_a_matrix():
    weight = torch.nn.Parameter(torch.randn(3, 24, 16))
    weight.grad = torch.randn(3, 24, 16)
    before = weight.detach().clone()
    Muon([{"params": [weight], "parts": [(12, 12)]}], lr=0.1, weight_decay=0.0, nesterov=False, momentum=0.0).step()
    for number, part in itertools.product(range(3), (slice(0, 12), slice(12, 24))):
        change = orthogonalise(weight.grad[number, part][None], 4)[0]
        torch.testing.assert_close(weight[number, part], before[number, part] - 0.1 * change, rtol=1e-5, atol=1e-6)


def test_parts_scales_and_first_values():
    built = Decoder(64, 1, depth=4, width=512, heads=4, ffn=512, experts={"count": 16})
    parts, scales = stacked_parts(built), parameter_scales(built)
    ffn = built.options["experts"]["ffn"]
    assert ffn == 128
    assert parts["blocks.0.mlp.up.weight"] == (ffn, ffn)
    assert scales["blocks.0.mlp.up.weight"] == scales["blocks.0.mlp.router.gate.weight"] == 0.5
    assert float(built.blocks[0].mlp.up.weight.std()) == pytest.approx(0.5 / math.sqrt(512), rel=0.01)
    assert float(built.blocks[0].mlp.down.weight.std()) == pytest.approx(0.25 / math.sqrt(ffn), rel=0.01)


def test_only_active_experts_cost():
    dense = Decoder(64, depth=2, width=64, heads=2, ffn=128)
    routed = Decoder(64, depth=2, width=64, heads=2, ffn=128, experts={"count": 8, "active": 2, "ffn": 64})
    assert routed.flops_per_token(16) - dense.flops_per_token(16) == 6 * 2 * 64 * 8  # the routers
    spared = Decoder(64, depth=2, width=64, heads=2, ffn=128, experts={"count": 8, "zero": 8, "active": 2, "ffn": 64})
    assert spared.flops_per_token(16) < dense.flops_per_token(16)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"active": 9}, "1 to 8 experts"), ({"dense": 2}, "leave none"), ({"real": 1.5, "active": 2}, "compute nothing"),
        ({"ffn": 0}, "too small"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(table, problem):
    with pytest.raises(RecipeError, match=problem):
        Decoder(64, depth=2, width=32, heads=2, experts={"count": 8, **table})


def test_the_table_is_checked_as_recipes_are():
    with pytest.raises(Exception, match="options") as error:
        registry.choose("models/families", {"name": "decoder", "depth": 2, "experts": {"count": 8, "actve": 2}})
    assert error.value.context["nested"][0].at == ("experts", "actve")


def test_a_compiled_block_is_the_same():
    if not device.can_compile():
        pytest.skip("no compiler")
    plain, compiled = layer(active=2), layer(active=2)
    function = torch.compile(compiled.forward, dynamic=False, fullgraph=True, backend="aot_eager")
    x = tokens()
    torch.testing.assert_close(function(x, PLAIN), plain(x, PLAIN))
    assert torch.equal(compiled.seen.demand, plain.seen.demand)
