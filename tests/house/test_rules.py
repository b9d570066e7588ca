"""The rules of docs/design.md, held by machine."""

import ast
import re
from pathlib import Path

import pytest

from bessemer.core import registry

PACKAGE = registry.PACKAGE
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ["core", "data", "models", "objectives", "serve", "evaluate", "optim", "schedules", "precision", "parallel", "sync", "train"]
ROOMS += ["grow", "compress", "rollout", "plan", "run", "cli"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every bessemer module a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bessemer"):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("bessemer")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_only_up_the_list_of_rooms(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        there = parts[1] if len(parts) > 1 else "core"
        assert there in ROOMS, f"{path} imports {name}, which is in no room"
        assert ROOMS.index(there) <= ROOMS.index(here), f"{path} in {here} imports {name} from {there}, which stands below it"


def test_devices_are_named_only_in_core_device():
    pattern = re.compile(r"torch\.cuda\b|['\"]cuda[:'\"]|\.cuda\(|torch\.xpu\b|torch\.mps\b")
    named = [f"{p.relative_to(PACKAGE)}: {m.group()}" for p in FILES if p != PACKAGE / "core/device.py" for m in pattern.finditer(p.read_text())]
    assert named == []


def test_files_are_small():
    sizes = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_functions_fit_a_screen():
    long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80:
                long.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
    assert long == []


def test_every_public_thing_has_a_docstring():
    bare = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        if path.name not in ("__init__.py", "__main__.py") and not ast.get_docstring(tree):
            bare.append(str(path))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
    assert bare == []


def test_nothing_unfinished_is_left():
    marks = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError")
    assert [f"{p.relative_to(PACKAGE)}: {m.group()}" for p in FILES for m in marks.finditer(p.read_text())] == []


def test_nothing_is_unpickled():
    pattern = re.compile(r"\bimport pickle\b|pickle\.loads?\(|torch\.load\(|weights_only\s*=\s*False")
    pipes = PACKAGE / "data/workers.py"  # between this program's own processes, never a file
    assert [f"{p.relative_to(PACKAGE)}: {m.group()}" for p in FILES if p != pipes for m in pattern.finditer(p.read_text())] == []


def test_kinds_hold_no_lists_in_init():
    for kind in registry.kinds():
        tree = ast.parse((PACKAGE / kind / "__init__.py").read_text())
        assert len(tree.body) == 1, f"{kind}/__init__.py says its contract and nothing else"


def test_optional_packages_are_imported_only_inside_functions():
    optional = {"transformers", "datasets", "sentencepiece", "ray", "lm_eval", "wandb", "mlflow", "trl"}
    found = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.relative_to(PACKAGE)}: {name}" for name in names if name.split(".")[0] in optional]
    assert found == []
