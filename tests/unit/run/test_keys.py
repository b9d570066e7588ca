"""An edit in a helper of one's own method is noticed, and what is nobody's helper is not looked at."""

from __future__ import annotations

import importlib
import sys

import pytest

from bessemer.run import keys

METHOD = "from {module} import {name}\n\n\ndef sch(progress):\n    return {name}(progress)\n"


@pytest.fixture
def version(tmp_path, monkeypatch):
    """Writes files, imports a method anew and gives its code's version."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def forget():
        for name in set(sys.modules) - known:
            if getattr(sys.modules[name], "__file__", None) is None or str(tmp_path) in str(sys.modules[name].__file__):
                del sys.modules[name]

    def of(module: str, files: dict[str, str]) -> str:
        forget()
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        importlib.invalidate_caches()
        return keys.code_version(importlib.import_module(module).sch)

    yield of
    forget()


@pytest.mark.parametrize(
    ("module", "files", "edited"),
    [
        ("mine2", {"mine2.py": METHOD.format(module="helper", name="shape")}, "helper.py"),
        ("mine2", {"mine2.py": METHOD.format(module="lib.helper", name="shape")}, "lib/helper.py"),
        ("own.deep.mine2", {"own/deep/mine2.py": METHOD.format(module="..helper", name="shape")}, "own/helper.py"),
        ("own.mine2", {"own/mine2.py": METHOD.format(module=".helper", name="shape"), "own/__init__.py": ""}, "own/helper.py"),
        ("own.mine2", {"own/mine2.py": METHOD.format(module="helper", name="shape")}, "helper.py"),
        (
            "mine2",
            {
                "mine2.py": METHOD.format(module="middle", name="shape"),
                "middle.py": "def shape(x):\n    from helper import shape as s\n    return s(x)\n",
            },
            "helper.py",
        ),
    ],
)
def test_an_edit_of_a_helper_is_noticed_and_its_comments_are_not(version, module, files, edited):
    first = version(module, {**files, edited: 'def shape(x):\n    """What it is."""\n    return 1.0\n'})
    assert version(module, {edited: 'def shape(x):\n    """One."""\n    return 1.0  # always\n'}) == first
    assert version(module, {edited: "def shape(x):\n    return 22.0\n"}) != first


def test_a_file_that_is_not_imported_does_not_count(version):
    files = {"mine2.py": METHOD.format(module="helper", name="shape"), "helper.py": "def shape(x):\n    return 1.0\n", "other.py": "a = 1\n"}
    assert version("mine2", files) == version("mine2", {"other.py": "a = 22\n"})


def test_beside_an_installed_module_only_its_own_package_counts(version, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    text = METHOD.format(module=".helper", name="shape") + "import large\n"
    files = {"own/__init__.py": "", "own/mine2.py": text, "own/helper.py": "def shape(x):\n    return 1.0\n", "large.py": "a = 1\n"}
    first = version("own.mine2", {f"site-packages/{name}": each for name, each in files.items()})
    assert version("own.mine2", {"site-packages/large.py": "a = 22\n"}) == first
    assert version("own.mine2", {"site-packages/own/helper.py": "def shape(x):\n    return 22.0\n"}) != first


def test_helpers_that_import_each_other(version):
    files = {"mine2.py": METHOD.format(module="helper", name="shape"), "helper.py": "import mine2\n\n\ndef shape(x):\n    return 1.0\n"}
    assert version("mine2", files)
