"""Every optimizer, every method around one, or schedules of the batch, on one workload: each tuned by the same rule inside the same total, several seeds, and what the reference's final loss took.

A workload is a file in benchmarks/workloads: a recipe, overrides, and a budget for each training. The rules are AlgoPerf's (Dahl et al.
2023) where they fit: the target is what the reference, tuned AdamW, reaches at its end; a method's time to it is the median over seeds of the
first held-out measure at or below it, and a method that most seeds never bring there has none. Matrices are moved by the method, or by AdamW
with the method around it, the rest by AdamW. What is done stays done: the same command goes on, and methods can be added later.

Within one schedule no method gets there much before the rates fall, which is the last fifth. So the best one is trained again in six tenths of
AdamW's steps, its schedule ending there, and then in fewer for as long as the mean over seeds still reaches AdamW's final loss, or in more until it does.

    python benchmarks/workloads.py depth2 [--only adamw,muon] [--seeds 3] [--tune 5] [--quick]
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

from results import finish

from bessemer.core import registry
from bessemer.run import compare_page, observe
from bessemer.run.compare import compare

FOLDER = Path(__file__).with_name("workloads")
REFERENCE = {"optim": "adamw", "optim/around": "alone", "schedules": "constant"}
"""What the others are held against, by their kind."""
MEASURE = {"optim": "steps", "optim/around": "steps", "schedules": "flops"}
"""What they take of the reference's: steps of different batches can't be compared."""
SHARE = 0.6
"""Of the reference's steps, which the best method may take to the reference's final loss."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=sorted(file.stem for file in FOLDER.glob("*.toml")))
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two methods, one seed, two rates, a hundredth of the budget")
    asked = parser.parse_args()
    work = tomllib.loads((FOLDER / f"{asked.workload}.toml").read_text())
    kind = work.get("kind", "optim")
    reference = REFERENCE[kind]
    names = asked.only.split(",") if asked.only else work.get("methods") or registry.names(kind)
    names = [reference, *(name for name in names if name != reference)]
    budget = work["budget"]
    if asked.quick:
        names, asked.seeds, asked.tune, budget = names[:1] + names[-1:], 1, 2, "tokens=40k"
        work["overrides"].append("train.compile=false")  # compiling would take longer than the trainings
    table = compare(
        work["recipe"],
        variants(work, names),
        place(asked),
        budget=budget,
        seeds=asked.seeds,
        tune=work.get("tune") or {"lr": asked.tune},
        overrides=work["overrides"],
        watch=observe.Lines(observe.to_stderr),
    )
    print(compare_page.text(table))
    rows = {called(row["settings"]): row for row in table["variants"]}
    figures = {name: shown(row) for name, row in rows.items()}
    whole, measure = rows[reference]["steps"], MEASURE[kind]
    for name, row in rows.items():
        figures[name][f"share_of_reference_{measure}"] = (
            row[f"{measure}_to_target"] / rows[reference][measure] if row[f"{measure}_to_target"] else None
        )
    best = next((name for name in rows if rows[name]["final"] is not None), reference)
    finals = {} if best == reference or kind == "schedules" else shortened(asked, work, best, rows[best]["tuned"], whole, rows[reference]["final"])
    shares = [share for share, final in finals.items() if final <= rows[reference]["final"]]
    figures["best"] = {
        "name": best,
        "share_of_reference_steps": min(shares, default=1.0),
        "finals": {str(key): value for key, value in finals.items()},
    }
    figures["reference"] = reference
    targets = {"share_of_reference_steps": SHARE} if kind == "optim" else {}
    holds = not targets or min(shares, default=1.0) <= SHARE
    methods = {name: {f"held_out_{asked.workload}": row["final"]} for name, row in rows.items() if name in registry.names(kind)}
    finish(f"workload_{asked.workload}", figures, targets, holds, asked.quick, methods)


def variants(work: dict[str, Any], names: list[str]) -> dict[str, list[Any]]:
    """What `compare` is to vary."""
    kind, options = work.get("kind", "optim"), work.get("options", {})
    if kind == "optim":
        return {"optim.name": names}
    entries = [{"name": name, **options.get(name, {})} for name in names]
    return {"schedule.batch": entries} if kind == "schedules" else {"around": [[each] if each["name"] != REFERENCE[kind] else [] for each in entries]}


def called(settings: dict[str, Any]) -> str:
    """The method of a variant."""
    if "optim.name" in settings:
        return str(settings["optim.name"])
    if "schedule.batch" in settings:
        return str(settings["schedule.batch"]["name"])
    return str(settings["around"][0]["name"]) if settings["around"] else REFERENCE["optim/around"]


def shortened(asked: argparse.Namespace, work: dict[str, Any], name: str, tuned: dict[str, Any], steps: int, target: float) -> dict[float, float]:
    """By share of the reference's steps: the mean final loss of a method trained in so many, to where it begins or ceases to reach the target."""
    found: dict[float, float] = {}
    share, down = SHARE, True
    while 0.25 < share < 0.95:
        table = compare(
            work["recipe"],
            variants(work, [name]) | {key: [value] for key, value in tuned.items()},
            place(asked) / "shortened",
            budget=f"steps={max(1, round(share * steps))}",
            seeds=asked.seeds,
            overrides=work["overrides"],
            watch=observe.Lines(observe.to_stderr),
        )
        found[share] = table["variants"][0]["final"]
        print(f"{name} in {share:.1f} of the reference's steps: {found[share]:.4f}, target {target:.4f}", flush=True)
        reached = found[share] <= target
        down = reached if share == SHARE else down
        if reached != down:
            break
        share = round(share - 0.1 if down else share + 0.1, 1)
    return found


def place(asked: argparse.Namespace) -> Path:
    """Where the trainings are kept."""
    return Path("runs") / f"workload-{asked.workload}{'-quick' if asked.quick else ''}"


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """What the results page keeps of a row."""
    kept = (
        "final",
        "interval",
        "best",
        "tuned",
        "edge",
        "steps",
        "steps_to_target",
        "seconds_to_target",
        "flops",
        "flops_to_target",
        "tokens_per_second",
        "peak_memory",
        "state_bytes",
    )
    return {key: row[key] for key in (*kept, "verdict", "failed")}


if __name__ == "__main__":
    main()
