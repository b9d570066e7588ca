"""Every way to tell something before documents: a prefix for each document, a function of the store and the seed alone."""

import numpy as np
import pytest

from bessemer.core import registry
from tests.unit.data.token_stores import small_tokenizer, small_tokens

NAMES = registry.names("data/condition")


def told(name, seed):
    return registry.choose("data/condition", name)(small_tokenizer(), small_tokens(), seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_document_has_its_prefix_the_same_each_time(name, seed):
    first, again = told(name, seed), told(name, seed)
    assert first.which.shape == small_tokens().lengths.shape
    assert 0 <= first.which.min() <= first.which.max() < len(first.ids)
    assert np.array_equal(first.which, again.which)
    assert all(np.array_equal(a, b) for a, b in zip(first.ids, again.ids, strict=True))
    assert any(len(ids) for ids in first.ids)
    assert all(((np.asarray(ids) >= 0) & (np.asarray(ids) < small_tokenizer().vocabulary_size)).all() for ids in first.ids)
    assert (first.learned, first.cooldown) == (again.learned, again.cooldown)
    assert 0 <= first.cooldown < 1
