"""docs/optimizers.md out of the methods' own words and the committed results.

python benchmarks/optimizers_page.py
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from results import FOLDER
from workloads import MEASURE

from bessemer.core import registry

MACHINES = ("optimizers", "optimizers_epyc")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "optimizers.md"
HEAD = """# Optimizers, compared

Written by `python benchmarks/optimizers_page.py` from the methods' docstrings and `benchmarks/results/`; change those, not this page. A cell
without a figure has not been measured.
"""
LOW_RANK = {
    "pre-training": "Pre-training from scratch",
    "fine-tuning": "Fine-tuning the fully pre-trained model on text of another kind",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## The update\n", *rules(), "\n## Around the update\n", *around(), *workloads(), *low_rank(), *plain()]
    return "\n".join(parts) + "\n"


def rules() -> Iterator[str]:
    """Each rule: what it does, its state, and its update's time."""
    results = [found for name in MACHINES if (found := _result(name))]
    if results:
        yield (
            "Milliseconds of one update of 25.3M numbers (the blocks of `small`), medians of steps taken in turn with the package's. Bytes a parameter there, for "
            "parameters in float32. Target: the most of the package's time. On ranks that hold pieces of a parameter: what moves (docs/parallel.md).\n"
        )
    for result in results:
        yield f"- {_processor(result)}: `{result['command']}`, {result['machine']}, {result['date']}"
    yield ""
    timed = [f"{what}, {_processor(result)}" for result in results for what in ("ms", "package's ms", "ratio")]
    yield _row("method", "rule", "state", "on ranks", "bytes", *timed, "target")
    yield "|---" * (6 + len(timed)) + "|"
    for name in registry.names("optim"):
        of_each = [result["figures"].get(name, {}) for result in results]
        held = next((f["bytes_per_parameter"] for f in of_each if f), None)
        cells = [_first(name, "optim"), _line(name, "optim", "State"), _on_ranks(name), _number(held, ".3g")]
        for f in of_each:
            ours, theirs = f.get("ours_ms"), f.get("theirs_ms")
            cells += [_number(ours, ".1f"), _number(theirs, ".1f"), _number(ours / theirs if ours and theirs else None, ".2f")]
        target = next((result["targets"][name] for result in results if name in result["targets"]), None)
        yield _row(f"[{name}](../bessemer/optim/{name}.py)", *cells, _number(target, ".2f"))


def _on_ranks(name: str) -> str:
    """What moves where a parameter lies on several ranks, in the words of docs/parallel.md."""
    made = registry.choose("optim", name)([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}])
    return ("pieces", "orthogonalised whole", "whole")[getattr(made, "columns", 0)]


def _processor(result: dict[str, Any]) -> str:
    """Whose: Intel or AMD."""
    return str(result["machine"].split()[0].split("(")[0])


def around() -> Iterator[str]:
    """Each method around the update."""
    yield "| method | what it does | state |"
    yield "|---|---|---|"
    for name in registry.names("optim/around"):
        yield _row(f"[{name}](../bessemer/optim/around/{name}.py)", _first(name, "optim/around"), _line(name, "optim/around", "State") or "none")


def workloads() -> Iterator[str]:
    """Losses of trainings at equal budgets, a table for each workload."""
    yield "\n## Trainings at equal budgets\n"
    yield (
        "Learning rates tuned by the same rule, three seeds; steps to the loss that the reference ends with, as a share of its steps. The reference is tuned too: "
        "AdamW, or what stands as alone or constant; where the batch grows, operations are counted instead of steps."
    )
    for file in sorted((Path(__file__).parent / "workloads").glob("*.toml")):
        result = _result(f"workload_{file.stem}")
        yield f"\n### {file.stem}\n"
        if result is None:
            yield f"Not measured yet: `python benchmarks/workloads.py {file.stem}`."
            continue
        rows = _trained(result)
        said_of = tomllib.loads(file.read_text())
        measure = MEASURE[said_of.get("kind", "optim")]
        yield " ".join(filter(None, [f"`{result['command']}`, {result['machine']}, {result['date']}.", said_of["about"], said_of.get("note")])) + "\n"
        yield f"| method | held-out loss | +- | of the reference's {measure.replace('flops', 'operations')} | rate | state bytes | against the best |"
        yield "|---|---|---|---|---|---|---|"
        for name, row in sorted(rows.items(), key=lambda pair: pair[1]["final"] or float("inf")):
            share = row[f"share_of_reference_{measure}"]
            tuned = ", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row["tuned"].values())
            said = "; ".join(filter(None, [str(row["verdict"] or ""), ", ".join(row["failed"] or [])]))
            numbers = [_number(row["final"], ".4f"), _number(row["interval"], ".4f"), _number(share, ".2f"), tuned]
            yield _row(name, *numbers, _number(row["state_bytes"], ",.0f"), said)
        best = result["figures"]["best"]
        tries = ", ".join(f"{float(share):.0%}: {final:.4f}" for share, final in best.get("finals", {}).items())
        yield f"\nTrained in fewer steps than the reference, its schedule ending there, {best['name']} ends at {tries} of the steps." if tries else ""


def low_rank() -> Iterator[str]:
    """Low-rank and sparse layers."""
    yield "\n## Low-rank and sparse layers\n"
    result = _result("low_rank")
    if result is None:
        yield "Not measured yet: `python benchmarks/low_rank.py`."
        return
    yield f"`{result['command']}`, {result['machine']}, {result['date']}. Nats a byte on held-out rows, each at the best of its rates, which the first seed chose; +- is half the 95% interval over seeds.\n"
    for key, rows in result["figures"].items():
        found = {name: row for name, row in rows.items() if isinstance(row, dict)} if isinstance(rows, dict) else {}
        if not found:
            continue
        label, _, size = key.partition(", ")
        yield f"### {LOW_RANK[label]}, {size}\n"
        yield "| method | loss | to full | +- | rate | trained | memory in kB | bytes/s |"
        yield "|---|---|---|---|---|---|---|---|"
        for name, row in sorted(found.items(), key=lambda pair: pair[1]["loss"]):
            numbers = [(row["loss"], ".4f"), (row["to_full"], "+.4f"), (row["to_full_interval"], ".4f"), (row["rate"], ".3g"), (row["trained"], ",d")]
            yield _row(name, *(_number(*each) for each in numbers), _number(row["memory"] / 1e3, ",.0f"), _number(row["speed"], ",.0f"))
        yield ""


def plain() -> Iterator[str]:
    """What every reader should know before quoting a figure."""
    yield "\n## What did not help\n"
    for file in sorted((Path(__file__).parent / "workloads").glob("*.toml")):
        result = _result(f"workload_{file.stem}")
        if result is None:
            continue
        rows, reference = _trained(result), _reference(result)
        worse = [n for n, r in rows.items() if n != reference and (r["final"] is None or r["final"] > rows[reference]["final"])]
        if worse:
            yield f"- {file.stem}: ended above the loss of {reference}, or not at all: {', '.join(sorted(worse))}."
    for result in filter(None, map(_result, MACHINES)):
        missed = [n for n, held in result["targets"]["held"].items() if not held]
        yield f"- Targets of the update's speed or size that are missed, {_processor(result)}: {', '.join(missed) or 'none'}."
    yield "- More, with what was tried in vain: `LOG.md`."


def _result(name: str) -> dict[str, Any] | None:
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _trained(result: dict[str, Any]) -> dict[str, Any]:
    """The rows of a workload's methods."""
    return {name: row for name, row in result["figures"].items() if isinstance(row, dict) and name != "best"}


def _reference(result: dict[str, Any]) -> str:
    return str(result["figures"].get("reference", "adamw"))


def _words(name: str, kind: str) -> str:
    return inspect.getdoc(registry.find(kind, name)) or ""


def _first(name: str, kind: str) -> str:
    return _words(name, kind).split("\n\n")[0].replace("\n", " ")


def _line(name: str, kind: str, start: str) -> str:
    """The sentence of a docstring that begins so."""
    text = " ".join(_words(name, kind).split("Args:")[0].split())
    _, found, rest = text.partition(f"{start} of ") if f"{start} of " in text else text.partition(f"{start}: ")
    return (("of " if " of " in found else "") + rest.split(". ")[0].rstrip(".")) if found else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
