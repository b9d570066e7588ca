"""Every objective: the same gradient under any split into micro-batches; masked tokens inert."""

import itertools

import pytest
import torch

from bessemer.core import registry
from bessemer.core.batch import Batch
from bessemer.models.families.decoder import Decoder
from bessemer.train.engine import Engine

NAMES = registry.names("objectives")
VOCABULARY, LENGTH, ROWS = 64, 24, 24


def ragged(rows=ROWS, seed=0):
    """Packed rows of documents of many lengths, with padding, and one row that has no target at all."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=draw)
    targets = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=draw)
    positions, segments, weights = (
        torch.zeros(rows, LENGTH, dtype=torch.int64),
        torch.zeros(rows, LENGTH, dtype=torch.int64),
        torch.zeros(rows, LENGTH),
    )
    for row in range(1, rows):
        at, number = 0, 1
        while at < LENGTH - 2:
            size = int(torch.randint(2, 12, (1,), generator=draw))
            size = min(size, LENGTH - at)
            positions[row, at : at + size] = torch.arange(size)
            segments[row, at : at + size] = number
            weights[row, at : at + size] = 1.0
            at, number = at + size + (row % 3 == 0), number + 1
    return Batch(tokens, positions, segments, targets, {"next_token": weights}, samples=torch.arange(rows))


def model_for(name):
    return Decoder(VOCABULARY, 1, depth=2, width=32, heads=2, ffn=64, ahead=2 if name == "multi_token" else 0).float()


def gradients(name, batches):
    model = model_for(name)
    objective = registry.choose("objectives", {"name": name, **({"z": 1e-3} if name == "next_token" else {})})()
    engine = Engine(model, {"text": (objective, 1.0)}, torch.float32)
    result = engine.forward_backward(batches)
    return result, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def cut(batch, parts):
    edges = [round(batch.rows * i / parts) for i in range(parts + 1)]
    return [batch.rows_of(a, b) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [2, 3, 8, 24])
def test_gradient_does_not_depend_on_micro_batches(name, parts):
    whole, expected = gradients(name, [ragged()])
    split, found = gradients(name, cut(ragged(), parts))
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.terms == pytest.approx(whole.terms, rel=1e-5)
    scale = max(float(g.abs().max()) for g in expected.values())
    for key, value in expected.items():
        assert float((found[key] - value).abs().max()) <= 1e-6 * max(1.0, scale), key


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_are_inert(name):
    batch = ragged()
    _, expected = gradients(name, [batch])
    changed = ragged()
    assert changed.targets is not None
    changed.targets = torch.where(changed.weights["next_token"] > 0, changed.targets, (changed.targets + 7) % VOCABULARY)
    _, found = gradients(name, [changed])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_the_loss_is_the_mean_over_all_counted_tokens():
    batch = ragged()
    whole, _ = gradients("next_token", cut(batch, 3))
    logits = model_for("next_token")(batch).logits()
    weights = batch.weights["next_token"]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(weights)
    assert whole.terms["cross_entropy"] == pytest.approx(float((nats * weights).sum() / weights.sum()), rel=1e-5)
