"""What is measured while training: asked for in vain, it is refused before the first step."""

from types import SimpleNamespace

import pytest

from bessemer.core.errors import RecipeError
from bessemer.core.registry import choose
from bessemer.data.corpus import write_corpus
from bessemer.train.hooks.evaluate import Evaluate
from tests.folders import folder
from tests.unit.data.token_stores import documents, small_tokenizer, small_tokens, store


def hook(tokens):
    return Evaluate(SimpleNamespace(store=tokens, work=SimpleNamespace(smoke=False)), tasks=[choose("evaluate/tasks", "bits_per_byte")])


def test_documents_to_measure_must_be_held_out():
    assert hook(small_tokens()).times == 10
    with pytest.raises(RecipeError, match="there is no token store"):
        hook(None)
    single = store(write_corpus(folder(), documents(1)), small_tokenizer(), held_out=0.01)
    with pytest.raises(RecipeError, match="hold out none"):
        hook(single)
