"""Every method of every kind: says what it is and where it is from, has a schema its own defaults pass, and can be written out and read again."""

import re

import pytest

from bessemer.core import registry

METHODS = [(entry.kind, entry.name) for entry in registry.entries()]
DOCS = {(entry.kind, entry.name): entry for entry in registry.entries()}
PUBLISHED = (
    "data/condition", "data/pack", "evaluate/tasks", "models/adapters", "models/convert", "models/reparameterize", "objectives", "optim",
    "optim/around", "train/balance",
)  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_its_docstring_begins_with_a_sentence_and_names_its_source(kind, name):
    entry = DOCS[kind, name]
    assert re.search(r"\w[^.]*[.:]$", entry.summary), "the docstring's first paragraph says what it is, in a sentence"
    if kind in PUBLISHED:
        assert re.search(r"\b(19|20)\d\d\b", entry.doc), "the docstring says which paper it is from, and of which year"


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_its_defaults_pass_its_own_schema_and_can_be_written_out(kind, name):
    fields = registry.schema(registry.find(kind, name)).model_fields
    try:
        choice = registry.choose(kind, name)
    except registry.PydanticCustomError as error:
        needed = {key for key, field in fields.items() if field.is_required()}
        faults = error.context["nested"]
        assert {fault.at[0] for fault in faults} == needed, faults
        assert {fault.problem for fault in faults} == {registry.MISSING}
        return
    assert registry.choose(kind, registry.as_plain(choice)) == choice
