"""What a run's folder holds, gathered for its report; a run that is still going has less of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bessemer.core import files
from bessemer.core.artifact import MANIFEST
from bessemer.core.errors import ArtifactError
from bessemer.run import folder as places
from bessemer.run.runner import RECIPE

METRICS = "metrics.jsonl"
PASSES = "forward_backward"


@dataclass
class StageData:
    """One stage of the run: its manifest once it is done, and the folder it stands in or works in.

    Attributes:
        stale: it was made from what is being made again, or was, since: the run's command will make it again too.
    """

    name: str
    do: str
    folder: Path | None = None
    manifest: dict[str, Any] | None = None
    stale: bool = False

    @property
    def state(self) -> str:
        return "stale" if self.stale else "done" if self.manifest else "begun" if self.folder else "to come"

    @property
    def info(self) -> dict[str, Any]:
        return self.manifest["info"] if self.manifest else {}

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"]) if self.manifest else 0.0


@dataclass
class Curve:
    """The metrics of one training stage, by kind of line.

    Attributes:
        steps: lines of logged steps.
        evaluations: lines of held-out measures.
        samples: lines of text written by the model on the way.
        events: lines of the guard.
        conflicts: lines of what tasks do to each other.
        mixes: lines of shares that changed while training.
        timed: seconds by what they went to, over the whole training.
    """

    stage: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    mixes: list[dict[str, Any]] = field(default_factory=list)
    timed: dict[str, float] = field(default_factory=dict)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Tokens seen and the figure `name`, where both are logged and finite."""
        pairs = [(line.get("tokens", line["step"]), line.get(name)) for line in self.steps]
        kept = [(float(x), float(y)) for x, y in pairs if isinstance(y, int | float) and y == y and abs(y) != float("inf")]
        return [x for x, _ in kept], [y for _, y in kept]

    def held_out(self) -> dict[str, tuple[list[float], list[float]]]:
        """Domain -> tokens seen and bits per byte."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for line in self.evaluations:
            for domain, score in domain_scores(line["evaluation"]).items():
                xs, ys = found.setdefault(domain, ([], []))
                xs.append(float(line.get("tokens", line["step"])))
                ys.append(score)
        return found

    def scores(self) -> list[tuple[dict[str, Any], float]]:
        """Each evaluation line that measured held-out text, with the mean bits per byte over domains."""
        found = [(line, domain_scores(line["evaluation"])) for line in self.evaluations]
        return [(line, sum(scores.values()) / len(scores)) for line, scores in found if scores]

    def law(self) -> dict[str, dict[str, float]]:
        """Whose loss -> whose text -> how much it lowers the loss, as a mix estimated it last; empty where none did."""
        found = [table for line in self.mixes for table in (line.get("law") or {}).values() if table]
        return found[-1] if found else {}

    def parts(self) -> dict[str, float]:
        """What is lower the better by domain and by task: the last held-out bits per byte of each domain, and each term's mean over the last twentieth."""
        found = {f"{domain} (held-out)": ys[-1] for domain, (_, ys) in self.held_out().items()}
        terms = list(dict.fromkeys(name for line in self.steps for name in line.get("terms") or {}))
        for name in terms if len(terms) > 1 else []:
            values = [line["terms"][name] for line in self.steps if name in (line.get("terms") or {})]
            tail = values[-max(1, len(values) // 20) :]
            found[name] = sum(tail) / len(tail)
        return {name: value for name, value in found.items() if value == value} if len(found) > 1 else {}


def domain_scores(evaluation: dict[str, Any]) -> dict[str, float]:
    """The bits per byte of each domain: of `bits_per_byte`, a number or a table of numbers or of figures with a `value`.

    A figure over all domains counts only where it is the only one.
    """
    measured = evaluation.get("bits_per_byte")
    table = measured if isinstance(measured, dict) and "value" not in measured else {"all": measured}
    values = {name: value.get("value") if isinstance(value, dict) else value for name, value in table.items()}
    kept = {name: float(value) for name, value in values.items() if isinstance(value, int | float) and value == value}
    return {name: value for name, value in kept.items() if name != "all"} or kept


@dataclass
class RunData:
    """A run as its folder tells of it."""

    folder: Path
    recipe: dict[str, Any]
    owner: dict[str, Any]
    stages: list[StageData]
    curves: list[Curve]
    going: bool

    @property
    def done(self) -> bool:
        return all((stage.manifest and not stage.stale) or stage.do == "report" for stage in self.stages)

    def made_by(self) -> dict[str, str]:
        """The versions the newest finished stage was made with."""
        manifests = [stage.manifest for stage in self.stages if stage.manifest]
        return manifests[-1]["made_by"] if manifests else {}


def gather(folder: Path) -> RunData:
    """Reads a run's folder.

    Raises:
        ArtifactError: it is no run's folder, or a file of it is torn.
    """
    if not folder.is_dir():
        raise ArtifactError("there is no such folder", file=folder, mend="name the folder of a run, such as runs/demo")
    if not (folder / places.OWNER).is_file() or not (folder / RECIPE).is_file():
        raise ArtifactError("is no run's folder", file=folder, mend="name the folder of a run, such as runs/demo")
    recipe, owner = files.read_json(folder / RECIPE), files.read_json(folder / places.OWNER)
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stage"), list):
        raise ArtifactError("doesn't hold a resolved recipe", file=folder / RECIPE)
    stages = [_stage(folder, str(table["name"]), str(table["do"])) for table in recipe["stage"]]
    _mark_stale(stages)
    curves = [read_metrics(stage.name, stage.folder / METRICS) for stage in stages if stage.folder and (stage.folder / METRICS).is_file()]
    return RunData(folder, recipe, owner, stages, curves, _going(folder))


def read_metrics(stage: str, file: Path) -> Curve:
    """The lines of a metrics file; a last line cut short by a kill or still being written is passed over."""
    curve = Curve(stage)
    for text in file.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or "step" not in line:
            continue
        for name, seconds in (line.get("time") or {}).items():
            curve.timed[name] = curve.timed.get(name, 0.0) + seconds
        for key, lines in (
            ("evaluation", curve.evaluations),
            ("sample", curve.samples),
            ("guard", curve.events),
            ("mix", curve.mixes),
            ("conflict", curve.conflicts),
            ("loss", curve.steps),
        ):
            if key in line:
                lines.append(line)
                break
    _tell_warming_up(curve)
    return curve


def _tell_warming_up(curve: Curve) -> None:
    """Moves what the first step of each sitting took beyond a usual one to an entry of its own: compiling, above all.

    Such a step is known by the clock of training standing still over it.
    """
    first: list[float] = []
    later: list[float] = []
    before = 0.0
    for line in curve.steps:
        took = (line.get("time") or {}).get(PASSES, 0.0)
        (later if line.get("seconds", 0.0) > before else first).append(took)
        before = line.get("seconds", 0.0)
    excess = sum(max(0.0, took - median(later)) for took in first) if later else 0.0
    if excess > 0.0:
        curve.timed[PASSES] -= excess
        curve.timed["compiling_and_warming_up"] = excess


def _stage(folder: Path, name: str, do: str) -> StageData:
    place = folder / name
    unfinished = sorted(folder.glob(f".{name}.*.partial"), key=lambda path: path.stat().st_mtime)
    if unfinished:
        return StageData(name, do, unfinished[-1])
    if (place / MANIFEST).is_file():
        return StageData(name, do, place, files.read_json(place / MANIFEST))
    return StageData(name, do)


def _mark_stale(stages: list[StageData]) -> None:
    """A stage is stale where a parent is unfinished, is stale itself, or is another than the one it was made from."""
    before: dict[str, StageData] = {}
    for stage in stages:
        made_from = stage.manifest["parents"] if stage.manifest else {}
        parents = [(before[name], was) for name, was in made_from.items() if name in before]
        stage.stale = any(parent.stale or parent.manifest is None or parent.manifest["hash"] != was for parent, was in parents)
        before[stage.name] = stage


def _going(folder: Path) -> bool:
    """Whether the process that worked here last is alive and a stage is unfinished."""
    try:
        pid = int((folder / places.LOCK).read_text() or 0)
    except (OSError, ValueError):
        return False
    return pid != os.getpid() and psutil.pid_exists(pid) and any(folder.glob(".*.partial"))
