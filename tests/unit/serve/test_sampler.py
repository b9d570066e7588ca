"""Picking tokens: the distribution is what the settings say, and draws depend on nothing but their key."""

import pytest
import torch

from bessemer.core.errors import BessemerError
from bessemer.serve.sampler import Sampling, draw, pick

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 1.5, -3.0])


def shares(how, logits=LOGITS, seen=None, count=20000):
    """How often each token is picked over evenly spread draws: exact to 1 / count."""
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    many = logits.expand(count, -1)
    picked = pick(many, draws, how, None if seen is None else seen.expand(count, -1))
    return torch.bincount(picked, minlength=logits.shape[-1]) / count


def renormalised(keep, temperature=1.0):
    probabilities = (LOGITS / temperature).softmax(-1)
    kept = torch.zeros_like(probabilities)
    kept[keep] = probabilities[keep]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Sampling(), renormalised(list(range(6)))),
        (Sampling(temperature=0.5), renormalised(list(range(6)), 0.5)),
        (Sampling(top_k=2), renormalised([0, 4])),
        (Sampling(top_k=100), renormalised(list(range(6)))),
        (Sampling(top_p=1e-9), renormalised([0])),
        (Sampling(top_p=0.7), renormalised([0, 4])),
        (Sampling(min_p=0.3), renormalised([0, 2, 4])),
        (Sampling(temperature=2.0, top_k=4, min_p=0.5), renormalised([0, 2, 4], 2.0)),
        (Sampling(temperature=0.01), renormalised([0])),
    ],
)
def test_picks_in_proportion(how, wanted):
    assert torch.allclose(shares(how), wanted, atol=2e-4)


def test_nucleus_is_the_smallest_set_that_reaches_top_p():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    found = shares(Sampling(top_p=0.79), probabilities.log())
    assert found[:2].min() > 0
    assert found[2:].max() == 0
    found = shares(Sampling(top_p=0.81), probabilities.log())
    assert found[:3].min() > 0
    assert found[3] == 0


def test_wide_nucleus_of_a_large_vocabulary_is_not_cut():
    logits = torch.zeros(1000)
    assert (shares(Sampling(top_p=0.9), logits, count=1000) > 0).sum() == pytest.approx(900, abs=2)


def test_temperature_zero_takes_the_best_and_reads_no_draws():
    assert pick(LOGITS[None], None, Sampling(temperature=0)).item() == 0


def test_repetition_penalty_shrinks_positive_and_grows_negative_logits():
    seen = torch.tensor([True, False, False, True, False, False])
    changed = LOGITS.clone()
    changed[0], changed[3] = 2.0 / 1.5, -1.0 * 1.5
    assert torch.allclose(shares(Sampling(repetition_penalty=1.5), seen=seen), changed.softmax(-1), atol=2e-4)


def test_a_token_without_probability_is_never_picked_even_at_the_ends():
    logits = torch.tensor([-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")])
    ends = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert set(pick(logits.expand(3, -1), ends, Sampling()).tolist()) <= {1, 3}


def test_draws_are_keyed_and_uniform():
    assert draw([7, 8], 3) == [draw([7], 3)[0], draw([8], 3)[0]]
    values = torch.tensor([draw([key], place)[0] for key in range(40) for place in range(50)])
    assert len(set(values.tolist())) == 2000
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_logits_are_refused(value):
    logits = LOGITS.clone()
    logits[1] = value
    with pytest.raises(BessemerError, match="not finite"):
        pick(logits[None], torch.tensor([0.5]), Sampling())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1},
        {"min_p": 1.0}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(BessemerError, match="out of range") as caught:
        Sampling(**wrong)
    assert caught.value.key in wrong
    assert caught.value.mend
