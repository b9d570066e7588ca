"""The committed results: the chief figures for README.md, and every figure for docs/figures.md; with --readme both are written.

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
WHOLE = README.parent / "docs" / "figures.md"
BEGIN, END = "<!-- figures: python benchmarks/table.py --readme -->", "<!-- end of figures -->"

TRAINING = {
    "tiny: times the best other": ("tiny", "ours", "times the best peer"),
    "small": ("small", "ours", "times the best peer"),
    "MFU of torch's matrix peak": ("tiny", "ours", "mfu"),
    "small ": ("small", "ours", "mfu"),
    "of our own products' peak": ("tiny", "ours", "mfu of own products"),
    "small  ": ("small", "ours", "mfu of own products"),
    "tiny: first step, s": ("tiny", "ours", "first step cold"),
    "warm": ("tiny", "ours", "first step warm"),
    "tiny: MB": ("tiny", "ours", "peak_mb"),
    "by hand": ("tiny", "by_hand", "peak_mb"),
}
UPDATES = {
    "time of an update over the packages': AdamW": ("adamw", "ratio"),
    "Muon": ("muon", "ratio"),
    "8-bit AdamW": ("adamw8bit", "ratio"),
    "GaLore": ("galore", "ratio"),
    "APOLLO": ("apollo", "ratio"),
    "APOLLO-Mini": ("apollo_mini", "ratio"),
    "SOAP": ("soap", "ratio"),
}
CHIEF: dict[str, dict[str, tuple[str, ...]]] = {
    "throughput": TRAINING,
    "throughput_epyc": TRAINING,
    "time_to_loss": {"times faster than tuned AdamW by hand, at least": ("times faster, at least",)},
    "tokenizer": {"MB/s, two threads": ("ours, two threads",), "tiktoken": ("tiktoken, two threads",)},
    "deduplication": {"times datatrove": ("ratio",), "recall": ("ours", "all"), "datatrove's": ("datatrove", "all")},
    "checkpoint": {"training stopped, s": ("ways", "ours", "blocked"), "torch's asynchronous save": ("ways", "torch async_save", "blocked")},
    "transfer": {"best rate at depth 4 over best at depth 12": ("apart",)},
    "generation": {"times transformers, one prompt": ("1 x greedy", "ratio"), "8": ("8 x greedy", "ratio"), "32": ("32 x greedy", "ratio")},
    "engine": {"our step over one by hand": ("ratio",)},
    "joint": {
        "joint step, % of the single tasks' rate": ("rate", "per_cent"),
        "kept of text alone, %": ("together", "text"),
        "clip": ("together", "clip"),
    },
    "parallel": {
        "DDP: times the best by hand": ("ours-ddp", "times the best by hand"),
        "our single process": ("ours-ddp", "times our single process"),
        "FSDP2: times the best by hand": ("ours-fsdp", "times the best by hand"),
        "our single process ": ("ours-fsdp", "times our single process"),
        "eight ranks' first step, s": ("eight ranks' first step, s",),
    },
    "optimizers": UPDATES,
    "optimizers_epyc": UPDATES,
    "workload_depth2": {"least share of AdamW's steps that the best takes to its loss": ("best", "share_of_reference_steps")},
    "workload_depth3": {"least share of AdamW's steps that the best takes to its loss": ("best", "share_of_reference_steps")},
    "workload_wide2": {"the same with eight times the tokens a step": ("best", "share_of_reference_steps")},
    "workload_wide3": {"the same with eight times the tokens a step, 3 layers of 192": ("best", "share_of_reference_steps")},
    "workload_ramp2": {"held-out bits a byte: batch that follows the noise": ("noise_ramp", "final"), "constant": ("constant", "final")},
}
"""What README.md shows: benchmark -> label -> where the figure stands."""


def summary() -> str:
    """A row for each benchmark."""
    lines = ["| `python benchmarks/...` | found | all targets held |", "|---|---|---|"]
    for name, labels in CHIEF.items():
        file = FOLDER / f"{name}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        found = ", ".join(f"{label.strip()} {_short(value)}" for label, path in labels.items() if (value := _at(result["figures"], path)) is not None)
        command = result["command"].removeprefix("python ").removeprefix("benchmarks/")
        lines.append(f"| `{command}` | {found} | {'yes' if result['holds'] else 'no'} |")
    return "\n".join(lines)


def _at(figures: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        figures = (figures or {}).get(part)
    return figures


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
    parser.add_argument("--readme", action="store_true", help="write README.md's table and docs/figures.md")
    if parser.parse_args().readme:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{summary()}\n{END}{rest.partition(END)[2]}")
        WHOLE.write_text(f"# Every figure\n\nWritten by `python benchmarks/table.py --readme` from `benchmarks/results/`.\n\n{table()}\n")
    print(summary())


if __name__ == "__main__":
    main()
