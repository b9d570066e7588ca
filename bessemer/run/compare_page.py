"""What a comparison writes: a table for programs and for people, the curves against tokens and seconds, and loss against memory."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from bessemer.core import files
from bessemer.run import report_page as html
from bessemer.run import report_plots
from bessemer.run.compare import RESULT
from bessemer.run.compare_table import Variant
from bessemer.run.observe import duration, number
from bessemer.run.report_data import Curve

COLUMNS = (
    "name", "tuned", "final", "interval", "best", "loss", "steps_to_target", "seconds_to_target", "flops_to_target", "tokens_per_second", "tokens",
    "steps", "seconds", "flops", "peak_memory", "state_bytes", "seeds", "verdict",
)  # fmt: skip
HEAD = (
    "variant", "tuned", "held-out", "± 95%", "best", "loss", "steps to", "time to", "FLOPs to", "tokens/s", "steps", "time", "FLOPs", "memory", "state",
)  # fmt: skip
LAST = "against the best"


def write(out: Path, table: dict[str, Any], variants: list[Variant]) -> None:
    """Writes compare.json, compare.csv, compare.html and the pictures into `out`."""
    files.write_json(out / RESULT, table)
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(table["variants"])
    files.write(out / "compare.csv", text.getvalue())
    pictures = curves(variants) | frontier(table["variants"])
    for name, picture in pictures.items():
        files.write(out / f"{name}.png", picture)
    body = [
        f"<h1>{html.escape(table['recipe'])}: {html.escape(' and '.join(variants[0].settings))}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in explained(table)),
        html.table([*HEAD, LAST], cells(table), numeric=range(2, len(HEAD))),
        *([html.table(*helped(table), numeric=range(1, 99))] if helped(table)[1] else []),
        *(html.table(*law(row), numeric=range(1, 99)) for row in lawful(table)),
        html.pictures(pictures),
    ]
    files.write(out / "compare.html", html.page(f"{table['recipe']}, compared", body))


def explained(table: dict[str, Any]) -> list[str]:
    """How the figures came about, in sentences."""
    said = [
        f"Budget {table['budget'] or 'as the recipe says'}, {_seeds(table['seeds'])} each{', where nothing else is said' if _uneven(table) else ''}; held-out is bits per byte, the mean over domains."
    ]
    if table["tune"]:
        keys = ", ".join(table["tune"])
        said.append(f"Each variant was tuned for {keys} by shorter trainings at the first seed, inside the same total.")
    target = table["variants"][0]["target"]
    if target is not None:
        said.append(f"Steps, time and FLOPs to the first held-out measure at or below {target:.4f}, medians over seeds.")
    if any(row["flops"] is not None for row in table["variants"]):
        said.append(
            "FLOPs are the model's, over all passes of tokens that a method asks for, a forward pass alone a third; "
            "the update rules' own products, such as Muon's and SOAP's, are left out."
        )
    return said


def cells(table: dict[str, Any]) -> list[list[str]]:
    """The table as people read it."""
    out = []
    for row in table["variants"]:
        tuned = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in row["tuned"].items())
        line = [row["name"], tuned, *(f"{row[key]:.4f}" if row[key] is not None else "" for key in ("final", "interval", "best", "loss"))]
        line += [_count(row["steps_to_target"]), _time(row["seconds_to_target"]), _large(row["flops_to_target"])]
        line += [
            _count(row["tokens_per_second"]),
            _count(row["steps"]),
            _time(row["seconds"]),
            _large(row["flops"]),
            _bytes(row["peak_memory"]),
            _bytes(row["state_bytes"]),
        ]
        own = [_seeds(row["seeds"])] if row["seeds"] != table["seeds"] else []
        out.append([*line, "; ".join([*own, row["verdict"]] if row["verdict"] else own)])
    return out


def helped(table: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Who helped whom: each domain's held-out measure and each task's terms under every variant, less those of the first as it was named.

    Returns:
        the head and the rows; no rows where there is only one part.
    """
    variants = sorted(table["variants"], key=lambda row: row["name"] != table["first"])
    names = list(dict.fromkeys(name for row in variants for name in row.get("parts") or {}))
    head = ["", *(f"{row['name']}{' less it' if place else ''}" for place, row in enumerate(variants))]
    rows = []
    for name in names:
        base, *others = ((row.get("parts") or {}).get(name) for row in variants)
        if base is not None:
            rows.append([name, f"{base:.4f}", *("" if each is None else f"{each - base:+.4f}" for each in others)])
    return head, rows


def lawful(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The variants whose mix estimated what each source's text does to each loss."""
    return [row for row in table["variants"] if row.get("law")]


def law(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One variant's estimate as a table: a loss a row, a source's text a column."""
    names = list(row["law"])
    return [f"{row['name']}, loss of", *(f"text of {name}" for name in names)], [
        [of, *(f"{row['law'][of][name]:+.3f}" for name in names)] for of in names
    ]


def text(table: dict[str, Any]) -> str:
    """The table for a terminal; columns in which there is nothing are left out."""
    from rich.console import Console
    from rich.table import Table

    rows = cells(table)
    kept = [place for place in range(len(HEAD)) if place == 0 or any(row[place] for row in rows)] + [len(HEAD)]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for place in kept:
        last = place == len(HEAD)
        shown.add_column(LAST if last else HEAD[place], justify="left" if last or place < 2 else "right", no_wrap=not last)
    for row in rows:
        shown.add_row(*(row[place] for place in kept))
    out = io.StringIO()
    Console(file=out, width=190).print(shown)
    titles = (
        "who was helped: of losses and bits, less is better",
        *(f"{row['name']}: how much whose text lowers whose loss" for row in lawful(table)),
    )
    for title, (head, parts) in zip(titles, [helped(table), *(law(row) for row in lawful(table))], strict=True):
        small = Table(box=None, pad_edge=False, header_style="bold", title=f"\n{title}", title_justify="left")
        for place, column in enumerate(head):
            small.add_column(column, justify="right" if place else "left", no_wrap=True)
        for cells_of_row in parts:
            small.add_row(*cells_of_row)
        if parts:
            Console(file=out, width=190).print(small)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, "", *explained(table), f"look at    {table['folder']}/compare.html"])


def curves(variants: list[Variant]) -> dict[str, bytes]:
    """Loss and held-out measure, against tokens and against seconds of training."""
    made: dict[str, bytes | None] = {}
    for across in ("tokens", "seconds"):
        losses = {v.name: [_loss(curve, across) for curve in v.curves] for v in variants}
        made[f"loss_{across}"] = report_plots.against("training loss (nats a token)", across, losses)
        scores = {v.name: [_held_out(curve, across) for curve in v.curves] for v in variants}
        made[f"held_out_{across}"] = report_plots.against("held-out bits per byte, mean over domains", across, scores)
    return {name: picture for name, picture in made.items() if picture}


def frontier(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Where each variant stands between loss and memory; those that no other beats in both are joined."""
    made: dict[str, bytes | None] = {}
    for name, key, across in (("pareto_memory", "peak_memory", "peak memory (MB)"), ("pareto_state", "state_bytes", "optimizer state (MB)")):
        points = {row["name"]: (row[key] / 1e6, row["final"]) for row in rows if row[key] is not None and row["final"] is not None}
        made[name] = report_plots.points("held-out bits per byte against memory", across, points, pareto(points)) if len(points) > 1 else None
    return {name: picture for name, picture in made.items() if picture}


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of the points that none other equals or beats in both, by their first figure."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _uneven(table: dict[str, Any]) -> bool:
    """Whether some variants were trained with another number of seeds, by an earlier call."""
    return any(row["seeds"] != table["seeds"] for row in table["variants"])


def _count(value: float | None) -> str:
    return number(round(value)) if value is not None else ""


def _time(value: float | None) -> str:
    return duration(value) if value is not None else ""


def _large(value: float | None) -> str:
    return f"{value:.2e}" if value is not None else ""


def _bytes(value: float | None) -> str:
    return f"{value / 1e6:,.0f} MB" if value is not None else ""


def _loss(curve: Curve, across: str) -> tuple[list[float], list[float]]:
    pairs = [(line[across], line["loss"]) for line in curve.steps if across in line and isinstance(line["loss"], int | float)]
    return [float(x) for x, _ in pairs], report_plots.smooth([float(y) for _, y in pairs])


def _held_out(curve: Curve, across: str) -> tuple[list[float], list[float]]:
    at = {line["step"]: line.get("seconds") for line in curve.steps}
    pairs = []
    for line, score in curve.scores():
        where = line.get(across, at.get(line["step"]) if across == "seconds" else line["step"])
        if where is not None:
            pairs.append((float(where), score))
    return [x for x, _ in pairs], [y for _, y in pairs]
