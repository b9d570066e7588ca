"""What a stage's result depends on, as one key: same key, same artifact, nothing to redo."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

from bessemer.core.artifact import digest
from bessemer.core.registry import PACKAGE, Choice

HOW = {"engine", "processes", "mesh", "parallel"}
"""Options that say how work is done, not what comes of it: a run begun on one mesh is continued on another."""

PATH_OPTIONS = {"path", "paths", "file", "files", "folder", "folders", "root"}


def stage_key(choice: Choice, plain: dict[str, Any], seed: int, smoke: bool, parents: list[str]) -> str:
    """The key of a stage: its method and code, its resolved options and the files they name, the seed, its parents' hashes.

    The code is that of the stage and of every method its options choose, comments and docstrings aside.
    """
    code = {f"{each.kind}/{each.name}": code_version(each.target) for each in _choices(choice)}
    stamps = {path: _stamp(Path(os.path.expanduser(path))) for path in sorted(set(_paths(plain)))}
    what = {name: value for name, value in plain.items() if name not in HOW}
    return digest({"do": choice.name, "options": what, "code": code, "inputs": stamps, "seed": seed, "smoke": smoke, "parents": parents})


@cache
def code_version(target: Callable[..., Any]) -> str:
    """A digest of the file that defines `target`, blind to comments, layout and docstrings.

    For a method from outside the package the modules of its user's that it imports count too: those that lie beside its own
    module or below, imports of imports included, whether or not they run.
    """
    file = Path(inspect.getfile(target)).resolve()
    tree = _bare(file)
    if file.is_relative_to(PACKAGE):
        return digest(ast.dump(tree))
    name = target.__module__
    depth = name.count(".") + (file.name == "__init__.py")
    root = file.parents[depth]
    top = name.partition(".")[0] if "site-packages" in root.parts else None  # beside an installed module lies everything installed
    helpers = _helpers(tree, name if file.name == "__init__.py" else name.rpartition(".")[0], root, top, {file: tree})
    helpers.pop(file)
    dump = ast.dump(tree)
    return digest([dump, {str(path.relative_to(root)): ast.dump(each) for path, each in sorted(helpers.items())}] if helpers else dump)


def _helpers(tree: ast.Module, package: str, root: Path, top: str | None, found: dict[Path, ast.Module]) -> dict[Path, ast.Module]:
    """The files below `root` that a module of `package` imports, and that these import, added to `found`."""
    for name in _imported(tree, package):
        parts = name.split(".")
        if parts[0] == PACKAGE.name or (top and parts[0] != top):
            continue
        for length in range(1, len(parts) + 1):  # a package's own __init__ runs before what is in it
            place = root.joinpath(*parts[:length])
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if file.is_file() and file not in found:
                    found[file] = _bare(file)
                    inside = parts[:length] if file.name == "__init__.py" else parts[: length - 1]
                    _helpers(found[file], ".".join(inside), root, top, found)
    return found


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The dotted names of what a module of `package` imports; of `from a import b` both a.b and, thereby, a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            yield from (".".join(filter(None, [*above, node.module, alias.name])) for alias in node.names)


def _bare(file: Path) -> ast.Module:
    """A file's code without docstrings."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value = ast.Constant(None)
    return tree


def _choices(value: Any) -> Iterator[Choice]:
    if isinstance(value, Choice):
        yield value
        yield from _choices(value.options)
    elif isinstance(value, pydantic.BaseModel):
        for name in type(value).model_fields:
            yield from _choices(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _choices(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _choices(item)


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """The strings under keys that name files."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _paths(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item, key)
    elif isinstance(value, str) and key in PATH_OPTIONS:
        yield value


def _stamp(path: Path) -> Any:
    """Sizes and times of the files a user's path stands for, so that changed input is noticed."""
    if path.is_dir():
        return digest([[str(p.relative_to(path)), *_stamp(p)] for p in sorted(path.rglob("*")) if p.is_file()])
    if path.is_file():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    if any(mark in str(path) for mark in "*?["):
        base = Path(path.anchor or ".")
        return digest([[str(p), *_stamp(p)] for p in sorted(base.glob(str(path.relative_to(path.anchor)))) if p.is_file()])
    return None
