"""The catalogue as people and programs read it."""

from __future__ import annotations

import textwrap
from typing import Any

from bessemer.core import registry
from bessemer.core.registry import Entry
from bessemer.run import catalogue


def plain(kind: str | None, entries: list[Entry], *, detailed: bool) -> dict[str, Any]:
    """The entries as JSON can hold them; with their options where a single method was asked for."""
    figures = catalogue.measured()
    out = []
    for entry in entries:
        value: dict[str, Any] = {"kind": entry.kind, "name": entry.name, "summary": entry.summary, "file": str(entry.file)}
        if detailed and kind is None:
            value |= {
                "doc": entry.doc,
                "options": [option | {"default": registry.as_plain(option["default"])} for option in catalogue.options(entry)],
            }
        if entry.name in figures:
            value["measured"] = figures[entry.name]
        out.append(value)
    return {"kind": kind, "methods": out}


def text(kind: str | None, entries: list[Entry], *, detailed: bool) -> str:
    """A table of names and sentences by kind, or all that is known of one method."""
    if detailed and kind is None:
        return "\n\n".join(_one(entry) for entry in entries)
    lines: list[str] = []
    kinds = [kind] if kind in registry.kinds() and not entries else list(dict.fromkeys(entry.kind for entry in entries))
    for each in kinds:
        lines += ["", f"{each}   {catalogue.contract(str(each)).splitlines()[0]}"] if detailed or kind is None else [str(each)]
        inside = [entry for entry in entries if entry.kind == each]
        width = max((len(entry.name) for entry in inside), default=0)
        for entry in inside:
            lines += textwrap.wrap(entry.summary, 110, initial_indent=f"  {entry.name:<{width}}  ", subsequent_indent=" " * (width + 4)) or [
                f"  {entry.name}"
            ]
    if not entries:
        lines.append("  (nothing yet)")
    return "\n".join(lines).strip("\n")


def _one(entry: Entry) -> str:
    lines = [f"{entry.kind}/{entry.name}", "", textwrap.indent(entry.doc, "  "), "", f"  file     {entry.file}"]
    figures = catalogue.measured().get(entry.name, {})
    if figures:
        lines.append("  measured " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    options = catalogue.options(entry)
    lines += ["", "  options" if options else "  no options"]
    for option in options:
        default = "needed" if option["needed"] else f"= {registry.as_plain(option['default'])!r}"
        lines.append(f"    {option['name']}: {option['type']}  {default}")
    return "\n".join(lines)
