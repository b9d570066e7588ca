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
from bessemer.core.registry import Choice

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
    """A digest of the file that defines `target`, blind to comments, layout and docstrings."""
    tree = ast.parse(Path(inspect.getfile(target)).read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value = ast.Constant(None)
    return digest(ast.dump(tree))


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
