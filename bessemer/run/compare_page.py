"""What a comparison writes: a table for programs and for people, and the curves against tokens and against seconds."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bessemer.core import files
from bessemer.run import report_page as html
from bessemer.run import report_plots
from bessemer.run.observe import duration, number
from bessemer.run.report_data import Curve

if TYPE_CHECKING:
    from bessemer.run.compare import Variant

COLUMNS = ("name", "final", "spread", "best", "loss", "tokens_per_second", "tokens", "steps", "seconds", "peak_memory", "verdict")
HEAD = ("variant", "held-out", "± seeds", "best", "loss", "tokens/s", "tokens", "steps", "time", "memory", "against the best")


def write(out: Path, table: dict[str, Any], variants: list[Variant]) -> None:
    """Writes compare.json, compare.csv, compare.html and the pictures into `out`."""
    files.write_json(out / "compare.json", table)
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(table["variants"])
    files.write(out / "compare.csv", text.getvalue())
    pictures = curves(variants)
    for name, picture in pictures.items():
        files.write(out / f"{name}.png", picture)
    budget = table["budget"] or "as the recipe says"
    body = [
        f"<h1>{html.escape(table['recipe'])}: {html.escape(' and '.join(variants[0].settings))}</h1>",
        f"<p>Budget {html.escape(budget)}, {table['seeds']} seed{'s' if table['seeds'] > 1 else ''} each; held-out is bits per byte, the mean over domains.</p>",
        html.table(list(HEAD), cells(table), numeric=range(1, 10)),
        html.pictures(pictures),
    ]
    files.write(out / "compare.html", html.page(f"{table['recipe']}, compared", body))


def cells(table: dict[str, Any]) -> list[list[str]]:
    """The table as people read it."""
    out = []
    for row in table["variants"]:
        line = [row["name"], *(f"{row[key]:.4f}" if row[key] is not None else "" for key in ("final", "spread", "best", "loss"))]
        line += [number(round(row[key])) if row[key] is not None else "" for key in ("tokens_per_second", "tokens", "steps")]
        line += [duration(row["seconds"]) if row["seconds"] is not None else "", f"{row['peak_memory'] / 1e6:,.0f} MB" if row["peak_memory"] else ""]
        out.append([*line, row["verdict"]])
    return out


def text(table: dict[str, Any]) -> str:
    """The table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for place, head in enumerate(HEAD):
        shown.add_column(head, justify="right" if 0 < place < len(HEAD) - 1 else "left", no_wrap=place < len(HEAD) - 1)
    for row in cells(table):
        shown.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=170).print(shown)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, "", f"look at    {table['folder']}/compare.html"])


def curves(variants: list[Variant]) -> dict[str, bytes]:
    """Loss and held-out measure, against tokens and against seconds of training."""
    made: dict[str, bytes | None] = {}
    for across in ("tokens", "seconds"):
        losses = {v.name: [_loss(curve, across) for curve in v.curves] for v in variants}
        made[f"loss_{across}"] = report_plots.against("training loss (nats a token)", across, losses)
        scores = {v.name: [_held_out(curve, across) for curve in v.curves] for v in variants}
        made[f"held_out_{across}"] = report_plots.against("held-out bits per byte, mean over domains", across, scores)
    return {name: picture for name, picture in made.items() if picture}


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
