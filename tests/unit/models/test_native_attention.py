"""The C kernel computes attention and its gradients, for grouped heads, masks, windows and odd layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.models.families.decoder import Decoder
from bessemer.models.layers import mask as masks
from bessemer.models.layers.native_attention import fits, native_attention, prepare

prepare()

CASES = {
    "one block": (1, 1, 1, 32, 32, "none"),
    "grouped": (2, 4, 2, 96, 32, "none"),
    "one key head": (1, 8, 1, 64, 64, "none"),
    "packed": (3, 4, 4, 128, 32, "packed"),
    "window": (2, 2, 2, 96, 64, "window"),
    "wide heads": (1, 2, 2, 64, 128, "packed"),
}


def of(kind: str, rows: int, length: int) -> Tensor | None:
    if kind == "window":
        return masks.windowed(length, 17, torch.zeros(()).device)
    if kind == "none":
        return None
    segments = torch.sort(torch.randint(0, 5, (rows, length), generator=torch.Generator().manual_seed(7)), dim=1).values
    return masks.packed(segments, None)


@pytest.mark.parametrize("case", CASES)
def test_equals_torch(case: str) -> None:
    rows, heads, key_heads, length, size, kind = CASES[case]
    draw = torch.Generator().manual_seed(1)
    fused = torch.randn(rows, length, (heads + 2 * key_heads) * size, generator=draw)  # as the layer's one product leaves them: far apart
    given = [each.view(rows, length, -1, size).transpose(1, 2) for each in fused.split([heads * size, key_heads * size, key_heads * size], -1)]
    mask = of(kind, rows, length)
    if not fits(given[0], mask):
        pytest.skip("this processor or compiler has no use for the kernel")
    grad = torch.randn(rows, heads, length, size, generator=draw)
    answers = []
    for way in (native_attention, reference):
        leaves = [each.detach().requires_grad_() for each in given]
        mixed = way(*leaves, mask)
        answers.append([mixed.detach(), *torch.autograd.grad(mixed, leaves, grad)])
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def test_large_scores_neither_overflow_nor_lose_the_row() -> None:
    query = torch.zeros(1, 1, 32, 32)
    query[..., 0] = 1e3
    key, value = query.clone(), torch.arange(32.0)[None, None, :, None].expand(1, 1, 32, 32).contiguous()
    if not fits(query, None):
        pytest.skip("this processor or compiler has no use for the kernel")
    torch.testing.assert_close(native_attention(query, key, value, None), reference(query, key, value, None))


def test_what_does_not_fit_is_left_to_torch() -> None:
    assert not fits(torch.zeros(1, 1, 48, 32), None)
    assert not fits(torch.zeros(1, 1, 32, 48), None)
    assert not fits(torch.zeros(1, 1, 32, 32, dtype=torch.bfloat16), None)


def test_a_block_compiles_to_one_graph_with_the_kernel_in_it() -> None:
    if not fits(torch.zeros(1, 1, 32, 32), None):
        pytest.skip("this processor or compiler has no use for the kernel")
    model, graphs = Decoder(65, 1, depth=1, width=64, heads=2, length=32), []

    def note(graph: torch.fx.GraphModule, given: object) -> torch.fx.GraphModule:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    model.blocks[0].compile(backend=note, fullgraph=True, dynamic=False)
    tokens = torch.arange(64).view(2, 32) % 65
    model(tokens)
    assert len(graphs) == 1
    assert any("causal_attention" in target for target in graphs[0])
