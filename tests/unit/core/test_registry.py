"""The signature is the schema."""

from __future__ import annotations

import pytest
from pydantic_core import PydanticCustomError

from bessemer.core import registry
from bessemer.core.errors import RecipeError


def test_every_method_is_found_by_its_name():
    for kind in registry.kinds():
        for name in registry.names(kind):
            assert callable(registry.find(kind, name)), f"{kind}/{name}"


def test_entries_are_read_without_importing(monkeypatch):
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert {entry.name for entry in registry.entries("schedules")} >= {"wsd", "cosine"}


def test_files_with_a_leading_underscore_are_no_methods():
    assert not any(name.startswith("_") for kind in registry.kinds() for name in registry.names(kind))


@pytest.mark.parametrize("name", ["../core/files", "core.nosuch.Thing", "a b", "", "_shapes", "nosuch"])
def test_what_is_no_method_is_an_error(name):
    with pytest.raises(RecipeError):
        registry.find("schedules", name)


def test_an_unknown_name_suggests_its_neighbour():
    with pytest.raises(RecipeError) as caught:
        registry.find("schedules", "cosin")
    assert "cosine" in str(caught.value.mend)


def test_defaults_are_filled_in_and_options_passed():
    choice = registry.choose("schedules", {"name": "wsd", "warmup": 0.5})
    assert choice.options["warmup"] == 0.5
    assert set(choice.options) == set(registry.schema(choice.target).model_fields)


@pytest.mark.parametrize("value", [3, None, {}, {"name": 3}, ["wsd"], {"warmup": 0.1}])
def test_what_names_no_method_is_refused(value):
    with pytest.raises(PydanticCustomError):
        registry.choose("schedules", value)


def test_tags_are_checked_and_not_passed_on():
    choice = registry.choose("schedules", {"name": "constant", "role": "matrix"}, {"role": str})
    assert choice.tags == {"role": "matrix"}
    assert "role" not in choice.options
    with pytest.raises(PydanticCustomError):
        registry.choose("schedules", {"name": "constant", "role": 3}, {"role": str})
    with pytest.raises(PydanticCustomError):
        registry.choose("schedules", {"name": "constant", "role": "matrix"})


def test_a_choice_survives_being_written_out():
    choice = registry.choose("schedules", {"name": "wsd", "warmup": 0.25, "role": "x"}, {"role": str})
    again = registry.choose("schedules", registry.as_plain(choice), {"role": str})
    assert again == choice


def test_options_can_be_replaced_and_are_checked():
    choice = registry.choose("schedules", "wsd")
    assert choice.with_options(warmup=0.5).options["warmup"] == 0.5
    with pytest.raises(PydanticCustomError):
        choice.with_options(warmup="long")


def test_whole_numbers_pass_for_fractions_but_not_the_other_way():
    def method(*, a: float, b: int = 1) -> None: ...

    assert registry.schema(method)(a=2, b=3).a == 2.0
    with pytest.raises(ValueError, match="b"):
        registry.schema(method)(a=2, b=3.0)


def test_runtime_arguments_are_no_options():
    def method(model, *, a: int = 1) -> None: ...

    assert set(registry.schema(method).model_fields) == {"a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def root(progress)\n    return 1.0\n", "schedules/root.py can't be read: line 1: expected ':'"),
        ("def rooot(progress):\n    return 1.0\n", "schedules/root.py has no function or class called root"),
        ("a\0", "schedules/root.py can't be read"),
    ],
)
def test_a_file_that_holds_no_method_says_why(tmp_path, monkeypatch, text, said):
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "root.py").write_text(text)
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    with pytest.raises(RecipeError) as caught:
        registry.find("schedules", "root")
    assert said in caught.value.problem
    assert str(tmp_path / "schedules" / "root.py") in str(caught.value.mend)


def test_an_option_there_is_none_of_is_told_with_its_neighbour_wherever_a_method_is_chosen():
    with pytest.raises(PydanticCustomError) as caught:
        registry.choose("evaluate/tasks", {"name": "bits_per_byte", "limt": 3})
    assert [fault.mend for fault in caught.value.context["nested"]] == ["did you mean 'limit'?"]
