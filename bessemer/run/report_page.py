"""The report's HTML: one page that holds everything, pictures and styles included."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bessemer.run.observe import number

STYLE = """
:root { --ink:#1e293b; --soft:#64748b; --line:#e2e8f0; --back:#f8fafc; --blue:#2563eb; --mono:ui-monospace,"DejaVu Sans Mono",monospace }
* { box-sizing:border-box }
body { margin:0; background:var(--back); color:var(--ink); font:15px/1.5 system-ui,"DejaVu Sans",sans-serif }
main { max-width:1120px; margin:0 auto; padding:32px 24px 64px }
h1 { font-size:28px; margin:0 }
h2 { font-size:19px; margin:40px 0 12px }
h3 { font-size:15px; margin:18px 0 6px }
p { margin:6px 0; color:var(--soft) }
.badge { border-radius:99px; padding:1px 12px; font-size:13px; font-weight:600; vertical-align:middle; margin-left:10px }
.done { background:#dcfce7; color:#166534 }
.going { background:#dbeafe; color:#1e40af }
.begun { background:#fef3c7; color:#92400e }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(165px,1fr)); gap:12px; margin-top:20px }
.tile, .card { background:#fff; border:1px solid var(--line); border-radius:10px; padding:14px 16px }
.tile b { display:block; font-size:22px; letter-spacing:-.01em; font-variant-numeric:tabular-nums }
.tile span { color:var(--soft); font-size:13px; display:block; line-height:1.3 }
.grid { display:grid; grid-template-columns:repeat(auto-fit,minmax(420px,1fr)); gap:12px }
.grid img { width:100%; display:block }
.card { padding:10px 12px; overflow-x:auto; margin-bottom:12px }
.grid .card { margin:0 }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums }
th { text-align:left; color:var(--soft); font-weight:600 }
th,td { padding:5px 10px; border-bottom:1px solid var(--line); vertical-align:top }
tr:last-child td { border-bottom:0 }
td.n, th.n { text-align:right }
td:first-child { min-width:15em }
pre { margin:0; font:12.5px/1.5 var(--mono); white-space:pre-wrap; overflow-wrap:anywhere }
code { font:12.5px var(--mono) }
.prompt { color:var(--blue); font-weight:600 }
details { margin-bottom:14px }
details summary { cursor:pointer; margin-bottom:6px }
.bar { background:#bfdbfe; height:10px; border-radius:3px; min-width:1px; margin-top:5px }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def escape(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text))


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """The few figures one looks for first: (value, what it is)."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in figures)
        + "</div>"
    )


def pictures(made: Mapping[str, bytes | None]) -> str:
    """Pictures side by side, each held in the page itself."""
    inside = "".join(
        f'<div class="card"><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></div>'
        for name, data in made.items()
        if data
    )
    return f'<div class="grid">{inside}</div>'


def table(head: list[str], rows: Iterable[Iterable[Any]], numeric: Iterable[int] = ()) -> str:
    """A table, without a heading if all of it is empty; the columns numbered in `numeric` stand to the right."""
    right = set(numeric)

    def cell(tag: str, place: int, value: Any) -> str:
        return f"<{tag}{' class=n' if place in right else ''}>{value if isinstance(value, Markup) else escape(value)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, h) for i, h in enumerate(head)) + "</tr>"] if any(head) else []
    lines += ["<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows]
    return f'<div class="card"><table>{"".join(lines)}</table></div>'


class Markup(str):
    """Text that is HTML already."""


def facts(values: Mapping[str, Any]) -> str:
    """What a stage recorded: figures in a table, named counts as bars, tables of tables as rows."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping | list)}
    plain |= {key: ", ".join(map(str, value)) for key, value in values.items() if isinstance(value, list) and len(str(value)) <= 300}
    out = [table(["", ""], [(words(str(key)), number(value)) for key, value in plain.items()])] if plain else []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows = dict(_rows(value))
            inside = bars(value) if _is_counts(value) else grid(rows) if rows else facts(value)
            out.append(f"<h3>{escape(words(str(key)))}</h3>{inside}" if inside else "")
    return "".join(out)


def bars(counts: Mapping[str, float]) -> str:
    """Counts as bars, largest first."""
    most = max([*counts.values(), 1e-12])
    rows = [
        (
            words(str(name)),
            number(value),
            Markup(f'<div style="width:30em"><div class="bar" style="width:{100 * max(0.0, value) / most:.1f}%"></div></div>'),
        )
        for name, value in sorted(counts.items(), key=lambda pair: -pair[1])
    ]
    return table(["", "", ""], rows, numeric=[1])


def grid(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows that share columns, as a table."""
    columns = list(dict.fromkeys(key for row in values.values() for key in row))
    rows = [(name, *(number(row.get(column, "")) for column in columns)) for name, row in values.items()]
    return table(["", *(words(column) for column in columns)], rows, numeric=range(1, len(columns) + 1))


def words(name: str) -> str:
    """An identifier as people write it."""
    return name.replace("_", " ")


def _is_counts(value: Mapping[str, Any]) -> bool:
    return len(value) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value.values())


def _rows(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The innermost tables of nested ones, by their path; nothing where some are deeper than figures beside them."""
    for name, inner in value.items():
        here = f"{path} › {words(str(name))}" if path else words(str(name))
        if not isinstance(inner, Mapping):
            return
        if not any(isinstance(each, Mapping | list) for each in inner.values()):
            yield here, inner
        else:
            yield from _rows(inner, here)
