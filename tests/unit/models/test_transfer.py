"""Initial values and rates carry over: what a model of one size computes and learns per step, one of another does too."""

from __future__ import annotations

import pytest
import torch

from bessemer.core.batch import Batch
from bessemer.models.families.decoder import Decoder
from bessemer.models.transfer import parameter_scales
from bessemer.objectives.next_token import NextToken

ROWS, LENGTH, VOCABULARY = 4, 32, 64


def batch(step: int) -> Batch:
    """Text that can be learned: each token follows from the one before it, mostly."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.zeros(ROWS, LENGTH + 1, dtype=torch.long)
    tokens[:, 0] = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    noise = torch.randint(0, 3, (ROWS, LENGTH), generator=draw)
    for i in range(LENGTH):
        tokens[:, i + 1] = (5 * tokens[:, i] + noise[:, i]) % VOCABULARY
    return Batch(tokens[:, :-1], torch.arange(LENGTH).expand(ROWS, LENGTH), None, tokens[:, 1:], {"next_token": torch.ones(ROWS, LENGTH)})


def moves(depth: int, scaled: bool, tied: bool = False, steps: int = 6) -> tuple[float, float]:
    """Mean change of the trunk's normalised state and of the logits by some Adam steps of the same rate."""
    model = Decoder(VOCABULARY, 0, depth=depth, tied=tied)
    scales = parameter_scales(model) if scaled else dict.fromkeys(parameter_scales(model), 1.0)
    optimizer = torch.optim.Adam([{"params": [p], "lr": 2e-3 * scales[n]} for n, p in model.named_parameters()], eps=1e-15)
    probe = batch(99)
    with torch.no_grad():
        before = model(probe)
    logits = before.logits().detach()
    for step in range(steps):
        optimizer.zero_grad()
        NextToken()(model(batch(step)), batch(step))["next_token"].sum.backward()
        optimizer.step()
    with torch.no_grad():
        after = model(probe)
        hidden = (after.hidden / after.hidden.pow(2).mean().sqrt() - before.hidden / before.hidden.pow(2).mean().sqrt()).pow(2).mean().sqrt()
        return float(hidden), float((after.logits() - logits).pow(2).mean().sqrt())


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_moves_states_and_logits_alike_at_every_size(tied):
    small, large = moves(2, True, tied), moves(8, True, tied)
    for a, b in zip(small, large, strict=True):
        assert 1 / 1.6 < a / b < 1.6, (small, large)


def test_without_scales_it_would_not():
    small, large = moves(2, False), moves(8, False)
    assert large[1] / small[1] > 2


def test_logits_start_small_and_branches_add_up_to_the_same():
    for depth in (2, 4, 8):
        with torch.no_grad():
            assert Decoder(VOCABULARY, 0, depth=depth)(batch(0).tokens).pow(2).mean().sqrt() < 0.5


def test_imported_and_plain_models_have_neutral_scales():
    assert set(parameter_scales(Decoder(VOCABULARY, depth=6, transfer=False)).values()) == {1.0}
    assert set(parameter_scales(Decoder(VOCABULARY, depth=6, transfer=False), rule="orthogonal").values()) == {1.0}


def test_scales_follow_the_table():
    model = Decoder(VOCABULARY, depth=8)  # twice the base in both
    adam, orthogonal = parameter_scales(model), parameter_scales(model, "orthogonal")
    assert adam["embed.weight"] == orthogonal["embed.weight"] == adam["norm.weight"] == 1
    assert adam["head.weight"] == adam["blocks.0.attention.qkv.weight"] == adam["blocks.7.mlp.gate_up.weight"] == 0.5
    assert adam["blocks.0.attention.out.weight"] == adam["blocks.0.mlp.down.weight"] == 0.25
    assert orthogonal["blocks.0.attention.qkv.weight"] == 1
    assert orthogonal["blocks.0.mlp.down.weight"] == 0.5
