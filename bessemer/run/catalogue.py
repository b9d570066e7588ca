"""What there is: the methods of every kind, from their sources, with what was measured of them."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bessemer.core import registry
from bessemer.core.errors import BessemerError, neighbours

PAGE = registry.PACKAGE.parent / "docs" / "methods.md"
RESULTS = registry.PACKAGE.parent / "benchmarks" / "results"


def listed(kind: str | None = None) -> list[registry.Entry]:
    """The methods of one kind, or of all.

    Raises:
        BessemerError: there is no such kind.
    """
    if kind is not None and kind not in registry.kinds():
        raise BessemerError(f"there is no kind '{kind}'", mend=neighbours(kind, registry.kinds()))
    return list(registry.entries(kind))


def contract(kind: str) -> str:
    """What every method of a kind is held to: its folder's docstring, without the word Kind."""
    import ast

    doc = ast.get_docstring(ast.parse((registry.PACKAGE / kind / "__init__.py").read_text())) or ""
    return doc.removeprefix("Kind:").strip()


def look_up(word: str) -> tuple[str | None, list[registry.Entry]]:
    """A kind's methods, or the methods of one name (`muon`, `optim/muon`).

    Returns:
        the kind, if `word` is one, and the entries.

    Raises:
        BessemerError: it is neither; neighbours are suggested.
    """
    every = list(registry.entries())
    kinds = registry.kinds()
    if word in kinds:
        return word, [entry for entry in every if entry.kind == word]
    inside = [kind for kind in kinds if kind.split("/")[-1] == word or kind.startswith(f"{word}/")]
    found = [entry for entry in every if word in (entry.name, f"{entry.kind}/{entry.name}")]
    if found:
        return None, found
    if inside:
        return inside[0] if len(inside) == 1 else word, [entry for entry in every if entry.kind in inside]
    known = [*kinds, *{entry.name for entry in every}]
    raise BessemerError(f"there is no kind or method '{word}'", mend=neighbours(word, known) or "`bessemer methods` lists all of them")


def options(entry: registry.Entry) -> list[dict[str, Any]]:
    """The options of a method: name, type in words, default or None if it must be given. Imports it."""
    import inspect

    target = registry.find(entry.kind, entry.name)
    function = target.__init__ if inspect.isclass(target) else target
    hints, found = registry.hints(target), []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            needed = parameter.default is inspect.Parameter.empty
            found.append(
                {
                    "name": parameter.name,
                    "type": in_words(hints.get(parameter.name, Any)),
                    "needed": needed,
                    "default": None if needed else parameter.default,
                }
            )
    return found


def in_words(hint: Any) -> str:
    """A type as it is read by people: `float from 0 below 1`, `'full' | '8bit'`, `method of optim`."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _ranged(inside[0], inside[1:])
    if origin is typing.Literal:
        return " | ".join(map(repr, inside))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(in_words, inside))
    if origin is not None and inside and origin is not Callable:
        return f"{origin.__name__}[{', '.join(map(in_words, inside))}]"
    named = {types.NoneType: "None", ...: "..."}
    return named[hint] if hint in named else str(getattr(hint, "__name__", hint))


def _ranged(plain: Any, notes: tuple[Any, ...]) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    kinds = [note.kind for note in notes if isinstance(note, registry.Kind)]
    said = f"method of {kinds[0]}" if kinds else in_words(plain)
    limits = [limit for note in notes for limit in getattr(note, "metadata", ())]
    said = " ".join([said, *(f"{words[key]} {getattr(limit, key):g}" for limit in limits for key in words if hasattr(limit, key))])
    lengths = {limit.min_length for limit in limits if hasattr(limit, "min_length")} & {
        limit.max_length for limit in limits if hasattr(limit, "max_length")
    }
    return f"{said} of {lengths.pop()}" if lengths else said


def measured() -> dict[str, dict[str, Any]]:
    """Method name -> what the committed benchmark results say of it.

    A result file may hold `"methods": {"muon": {"figure": value}}`; the other figures belong to the whole.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        try:
            content = json.loads(file.read_text())
        except ValueError:
            continue
        about = content.get("methods") if isinstance(content, dict) else None
        for name, figures in (about or {}).items():
            found.setdefault(name, {}).update(figures)
    return found


def markdown() -> str:
    """docs/methods.md: every kind with its contract, every method with its sentence and figures."""
    figures = measured()
    lines = ["# Methods", "", "Written by `bessemer methods --markdown` from the sources; don't edit it by hand.", ""]
    for kind in registry.kinds():
        entries = list(registry.entries(kind))
        lines += [f"## {kind}", "", contract(kind), ""]
        if entries:
            lines += ["| method | what it is | measured |", "|---|---|---|"]
        for entry in entries:
            path = Path("..") / entry.file.relative_to(registry.PACKAGE.parent)
            said = ", ".join(f"{key} {_short(value)}" for key, value in figures.get(entry.name, {}).items())
            lines.append(f"| [{entry.name}]({path.as_posix()}) | {_cell(entry.summary)} | {_cell(said)} |")
        lines.append("")
    return "\n".join(lines)


def _short(value: Any) -> str:
    """Four digits of a number that isn't whole."""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
