"""Forgetting activations changes no gradient, and what is still held is what was to be kept."""

import gc
from typing import Any

import pytest
import torch

from bessemer.core.batch import Batch
from bessemer.core.mesh import World
from bessemer.models.families.decoder import Decoder
from bessemer.parallel.order import Parallel, spread
from bessemer.plan.held import Held

ROWS, LENGTH, WIDTH, HEADS, KV, SIZE, FFN = 2, 32, 64, 4, 4, 16, 96
SHAPE = {"width": WIDTH, "heads": HEADS, "kv_heads": KV, "head_size": SIZE, "ffn": FFN, "qk_norm": "none"}
TOKENS = torch.randint(0, 65, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
EXPERTS = {"count": 4, "active": 2, "ffn": 24, "shared": 1}


def made(depth: int, how: dict[str, Any], compile: bool = False, **options: Any) -> Decoder:
    model = Decoder(65, 3, **(SHAPE | {"depth": depth} | options)).train()
    spread(model, World(), Parallel(**how), compile=compile)
    return model


def loss(model: Decoder) -> torch.Tensor:
    outputs = model(Batch(TOKENS, torch.arange(LENGTH).expand(ROWS, -1)))
    return outputs.logits().float().logsumexp(-1).sum()


def gradients(model: Decoder) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss(model), [p for p in model.parameters() if p.requires_grad], materialize_grads=True))


def held(model: Decoder) -> int:
    """Bytes that a forward pass took and has not given back."""
    loss(model)
    gc.collect()  # other tests' tensors, given back while this counts, would be taken for its own
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = loss(model)
    assert kept.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def a_block(parallel: dict[str, Any], compile: bool = False, **options: Any) -> float:
    """Bytes that each further block holds."""
    return (held(made(4, parallel, compile, **options)) - held(made(2, parallel, compile, **options))) / 2


@pytest.mark.parametrize("options", [{}, {"experts": EXPERTS}, {"parallel": True, "mlp": "gelu"}], ids=["dense", "experts", "parallel"])
@pytest.mark.parametrize("parallel", [{"remat": "full"}, {"remat": "selective"}, {"remat": "selective", "keep": ["attention"]}], ids=str)
def test_gradients_are_the_same_to_the_bit(options, parallel):
    for found, wanted in zip(gradients(made(2, parallel, **options)), gradients(made(2, {}, **options)), strict=True):
        assert torch.equal(found, wanted)


def test_what_is_held_is_what_was_to_be_kept():
    places = ROWS * LENGTH * 4
    entry = places * WIDTH  # a block's input
    attention = places * HEADS * SIZE + ROWS * HEADS * LENGTH * 4  # and its logarithms
    products = places * ((HEADS + 2 * KV) * SIZE + WIDTH + 2 * FFN + WIDTH)
    assert a_block({"remat": "full"}) == entry
    assert a_block({"remat": "selective", "keep": ["attention"]}) == entry + attention
    assert a_block({"remat": "selective", "keep": ["products"]}) == entry + products
    assert a_block({"remat": "selective"}) == entry + attention + products
    assert a_block({}) > 1.5 * a_block({"remat": "selective"})


@pytest.mark.parametrize("how", [{}, {"remat": "full"}, {"remat": "selective"}, {"remat": "selective", "keep": ["attention"]}], ids=str)
def test_a_dry_run_counts_what_is_held(how):
    found = {}
    for depth in (2, 4):
        model = made(depth, how)
        counter = Held(model)
        with counter:
            loss(model)
        found[depth] = counter.bytes
    assert (found[4] - found[2]) / 2 == a_block(how)


def test_results_of_experts_are_kept():
    options = {"experts": EXPERTS | {"shared": 0}}
    each = 2 * 24 + WIDTH  # up and gate, down
    more = a_block({"remat": "selective"}, **options) - a_block({"remat": "selective", "keep": ["products", "attention"]}, **options)
    assert more == ROWS * LENGTH * 4 * EXPERTS["active"] * each


def test_a_budget_is_kept_to(monkeypatch):
    """Through the part of the compiler that solves it; no kernels are generated. What is compiled later without a budget has none."""

    def compiled(block: torch.nn.Module, **how: Any) -> None:
        block._compiled_call_impl = torch.compile(block._call_impl, backend="aot_eager_decomp_partition", **how)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    wanted, found = gradients(made(2, {})), {}
    for budget in (1.0, 0.5, 0.0, None):
        torch._dynamo.reset()
        how = {} if budget is None else {"remat": "budget", "budget": budget}
        for one, other in zip(gradients(made(2, how, compile=True)), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        found[budget] = held(made(2, how, compile=True))
    assert found[0.0] < found[0.5] < found[1.0] == found[None]
