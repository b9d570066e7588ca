"""A mistake in a method of one's own is told with its file and line, before anything is built."""

from __future__ import annotations

import sys

import pytest

from bessemer.core import registry
from bessemer.core.errors import RecipeError

MINE = '''
from bessemer.core.progress import Progress

notamethod = 3


def root(progress: Progress, *, floor: float = 0.0) -> float:
    """Falls."""
    return floor


def greedy(progress, more, *, floor: float = 0.0) -> float:
    return floor


def hinted(progress, *, floor: "Nothing" = 0.0) -> float:
    return floor
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str = MINE, name: str = "my_things"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path / f"{name}.py"

    yield write
    sys.modules.pop("my_things", None)


def refused(kind: str, name: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        registry.find(kind, name)
    return caught.value


def test_a_fitting_method_is_found(mine):
    mine()
    assert registry.choose("schedules", {"name": "my_things.root", "floor": 0.5})(None) == 0.5


def test_what_is_no_method_is_refused_by_its_type(mine):
    file = mine()
    error = refused("schedules", "my_things.notamethod")
    assert "int" in error.problem
    assert str(file) in error.problem


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a = 1\n\nraise RuntimeError('no disk')\n", 3, "RuntimeError: no disk"),
        ("a = 1\nb = c\n", 2, "NameError: name 'c' is not defined"),
        ("def root(progress)\n    return 1.0\n", 1, "expected ':'"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_file_and_line(mine, text, line, said):
    file = mine(text)
    problem = refused("schedules", "my_things.root").problem
    assert f"{file}:{line}: " in problem
    assert said in problem


def test_a_misspelt_function_suggests_its_neighbour(mine):
    mine()
    assert refused("schedules", "my_things.rooot").mend == "did you mean 'root'?"


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("objectives", "root", "no subclass of Objective"),
        ("models/adapters", "root", "no subclass of Adapter"),
        ("optim", "root", "no subclass of Optimizer"),
        ("train/guards", "root", "progress"),
        ("optim/around", "root", "(params, model)"),
        ("schedules", "greedy", "more"),
        ("schedules", "hinted", "Nothing"),
    ],
)
def test_a_method_of_another_kind_is_refused_where_it_stands(mine, kind, name, said):
    file = mine()
    error = refused(kind, f"my_things.{name}")
    assert said in error.problem
    assert f"{file}:{1 + MINE[: MINE.index(f'def {name}')].count(chr(10))}" in error.problem


def test_a_module_that_is_nowhere_says_where_it_is_looked_for():
    error = refused("schedules", "not_here_at_all.root")
    assert error.mend == "give the command where not_here_at_all.py is, or put its folder on PYTHONPATH"


def test_every_shipped_method_fits_its_own_contract():
    misfits, tried = [], 0
    for kind in registry.kinds():
        contract = (registry.PACKAGE / kind / "__init__.py").read_text()
        for name in registry.names(kind):
            tried += 1
            try:
                registry.outside.check(name, registry.find(kind, name), kind, contract)
            except RecipeError as error:
                misfits.append((kind, name, error.problem))
    assert tried > 100
    assert misfits == []
