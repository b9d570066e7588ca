"""The committed results as a markdown table; with --readme it is put into README.md.

python benchmarks/table.py [--readme]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import FOLDER

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- figures: python benchmarks/table.py --readme -->", "<!-- end of figures -->"


def table() -> str:
    """A row for each case of each benchmark, and below it how and where the figures were measured."""
    lines = ["| benchmark | case | figures | target | held |", "|---|---|---|---|---|"]
    told = []
    for file in sorted(FOLDER.glob("*.json")):
        result = json.loads(file.read_text())
        held = result["holds"]
        target, all_hold = ", ".join(_leaves(result["targets"])), "yes" if (all(held.values()) if isinstance(held, dict) else held) else "no"
        for number, (case, figures) in enumerate(_cases(result["figures"])):
            first = number == 0
            cells = [result["name"] if first else "", case, figures, target if first else "", all_hold if first else ""]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        told.append(f"- {result['name']}: `{result['command']}`, {result['machine']}, {result.get('date', 'no date')}")
    return "\n".join([*lines, "", *told])


def _cases(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    plain = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    if plain:
        yield "", ", ".join(_leaves(plain))
    for name, value in figures.items():
        if isinstance(value, dict) and (shown := ", ".join(_leaves(value))):
            yield name, shown


def _leaves(value: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _leaves(item, f"{path}{name} ")
        elif isinstance(item, bool) or not isinstance(item, list):
            yield f"{path}{name} {_short(item)}"


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="replace the table in README.md")
    made = table()
    if parser.parse_args().readme:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")
    print(made)


if __name__ == "__main__":
    main()
