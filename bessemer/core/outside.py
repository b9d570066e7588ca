"""Methods from outside the package: imported by their dotted path, and held to what their kind asks for before anything is built."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.core.errors import RecipeError, neighbours

_CONTRACT = re.compile(r"`name\((?P<given>[^*`]*)\*[^`]*`(?:, an? `?(?P<base>[\w.]+)`?(?: \(see `(?P<file>\w+)\.py`\))?)?", re.IGNORECASE)


def load(path: str) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Raises:
        RecipeError: its module can't be imported, with the file and line that stopped it, or has no such thing.
    """
    name, _, symbol = path.rpartition(".")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(f"'{path}' can't be imported: {_told(error)}", mend=_mend(name, error)) from None
    if not hasattr(module, symbol):
        there = [key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise RecipeError(f"'{path}' can't be imported: {getattr(module, '__file__', name)} has no '{symbol}'", mend=neighbours(symbol, there))
    found = getattr(module, symbol)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise RecipeError(f"'{path}' in {getattr(module, '__file__', name)} is of type {type(found).__name__}, and a class or function is wanted")
    return found


def check(path: str, target: Callable[..., Any], kind: str, contract: str) -> None:
    """Holds a method to what its kind's contract says of the base class and of the arguments given at run time.

    Args:
        contract: the docstring of the kind's folder; "`name(progress, *, ...)`" says what is given, ", an `Objective` (see `_objective.py`)"
            the base class.

    Raises:
        RecipeError: it doesn't fit, with its file and line.
    """
    found = _CONTRACT.search(contract)
    if found is None:
        return
    if found["base"]:
        base = _base(kind, found["base"], found["file"])
        if not (inspect.isclass(target) and issubclass(target, base)):
            raise RecipeError(f"'{path}' ({place(target)}) is no subclass of {base.__name__}, and a method of kind {kind} is one", mend=_like(kind))
    given = [part.strip() for part in found["given"].split(",") if part.strip()]
    try:
        inspect.signature(target).bind_partial(*[None] * len([name for name in given if not name.endswith("...")]))
        short = [] if any(name.endswith("...") for name in given) else _needed(target)[len(given) :]
    except (TypeError, ValueError) as error:
        raise RecipeError(f"'{path}' ({place(target)}) can't be called with ({', '.join(given)}): {error}", mend=_like(kind)) from None
    if short:
        problem = f"'{path}' ({place(target)}) wants '{short[0]}', and a method of kind {kind} is given ({', '.join(given)})"
        raise RecipeError(problem, mend=f"{_like(kind)}; options stand after *")


def place(target: Callable[..., Any]) -> str:
    """The file and line where a class or function is written, as `file:line`."""
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return str(getattr(target, "__module__", "of no file"))


def _base(kind: str, name: str, file: str | None) -> type:
    if file:
        return getattr(importlib.import_module(".".join(["bessemer", *Path(kind).parts, file])), name)
    module, _, symbol = name.rpartition(".")
    return getattr(importlib.import_module(module), symbol)


def _needed(target: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]


def _like(kind: str) -> str:
    return f"`bessemer methods {kind}` shows what a method of this kind is"


def _told(error: Exception) -> str:
    """What was raised, and at which line of which file."""
    said = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    ours = (__file__, importlib.__file__, "<frozen")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix))] or frames
    return f"{own[-1].filename}:{own[-1].lineno}: {said}" if own else said


def _mend(module: str, error: Exception) -> str | None:
    """A module that isn't found is looked for in the working folder and along PYTHONPATH."""
    first = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == first:
        return f"give the command where {first if '.' in module else f'{first}.py'} is, or put its folder on PYTHONPATH"
    if isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name):
        return "a dotted name is module.Class and must be importable from here"
    return None
