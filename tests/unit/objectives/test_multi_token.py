"""Predictions further ahead are scored against the right tokens, inside documents only."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.models.families.decoder import Decoder
from bessemer.objectives.multi_token import MultiToken, shifted
from bessemer.objectives.next_token import NextToken


def batch() -> Batch:
    stream = torch.randint(0, 30, (2, 13), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3])
    positions = torch.cat((torch.arange(7), torch.arange(5))), torch.cat((torch.arange(9), torch.zeros(3, dtype=torch.long)))
    return Batch(stream[:, :-1], torch.stack(positions), segments, stream[:, 1:], {"next_token": (segments > 0).float()})


def test_shifted_stays_inside_documents():
    b = batch()
    targets, weights = shifted(b, 2)
    assert weights[0].tolist() == [1] * 5 + [0] * 2 + [1] * 3 + [0] * 2
    assert weights[1].tolist() == [1] * 7 + [0] * 5
    assert torch.equal(targets[0, :5], b.targets[0, 2:7])


def test_terms_equal_a_plain_computation():
    b, model = batch(), Decoder(30, depth=1, width=32, heads=2, ahead=2)
    outputs = model(b)
    terms = MultiToken(weight=0.4)(outputs, b)
    assert torch.equal(terms["next_token"].sum, NextToken()(outputs, b)["next_token"].sum)
    for number in (1, 2):
        targets, weights = shifted(b, number)
        logits = model.head(outputs.extras[f"ahead_{number}"])
        wanted = (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()).sum()
        assert terms[f"ahead_{number}"].sum.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert terms[f"ahead_{number}"].scale == 0.2


def test_a_prediction_sees_no_token_it_predicts():
    """The state for t + 2 at position i may depend on tokens up to i + 1, the one before the token it predicts."""
    b, model = batch(), Decoder(30, depth=1, width=32, heads=2, ahead=1)
    before = model(b).extras["ahead_1"]
    b.targets = b.targets.clone()
    b.targets[0, 3] = (b.targets[0, 3] + 1) % 30
    b.tokens = b.tokens.clone()
    b.tokens[0, 4] = b.targets[0, 3]
    changed = (model(b).extras["ahead_1"] - before).abs().amax(-1)[0] > 0
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_a_model_that_looks_one_ahead_only_is_refused():
    b = batch()
    with pytest.raises(RecipeError, match="ahead"):
        MultiToken()(Decoder(30, depth=1, width=32, heads=2)(b), b)
