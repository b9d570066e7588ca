"""Intervals: they cover the truth as often as they say, and repeat."""

import json
import pickle

import numpy as np
import pytest

from bessemer.evaluate.figure import Figure, ratio


def test_a_figure_is_a_number_everywhere():
    figure = Figure(0.5, 0.25, 0.75, 8)
    assert figure == 0.5
    assert json.loads(json.dumps({"a": figure})) == {"a": 0.5}
    assert f"{figure:.2f}" == "0.50"
    assert figure.plain() == {"value": 0.5, "low": 0.25, "high": 0.75, "count": 8, "better": "higher"}
    assert pickle.loads(pickle.dumps(figure)).plain() == figure.plain()


def test_the_value_is_the_quotient_of_sums_and_the_interval_is_keyed():
    sums, counts = np.arange(40) % 7 + 0.5, np.arange(40) % 5 + 1.0
    figure = ratio(sums, counts, 1, "x")
    assert figure == sums.sum() / counts.sum()
    assert figure.plain() == ratio(sums, counts, 1, "x").plain()
    assert (figure.low, figure.high) != (ratio(sums, counts, 2, "x").low, ratio(sums, counts, 2, "x").high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(120):
        counts = generator.integers(50, 500, 60)
        sums = counts * generator.normal(1.3, 0.2, 60)
        figure = ratio(sums, counts, trial, "x")
        covered += figure.low <= 1.3 <= figure.high
    assert 0.87 < covered / 120 < 0.99


def test_one_document_has_no_interval_and_nothing_is_an_error():
    assert ratio([2.0], [4.0], 0, "x").plain() == Figure(0.5, 0.5, 0.5, 1).plain()
    with pytest.raises(ValueError, match="nothing was counted"):
        ratio([], [], 0, "x")
