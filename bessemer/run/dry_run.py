"""What a recipe's training would take on so many ranks, without starting any."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from bessemer.core import device
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import Mesh
from bessemer.core.recipe import Recipe, Stage
from bessemer.core.work import Work
from bessemer.plan import dry
from bessemer.run import wiring
from bessemer.train import build


def dry_run(recipe: Recipe, ranks: int | None) -> dict[str, Any]:
    """Each training stage on fake ranks, as JSON can hold it.

    Args:
        ranks: how many; the data axis takes what the recipe's mesh leaves open. None: as many as the mesh says.

    Raises:
        RecipeError: the recipe trains nothing, or its model, mesh and ranks don't fit each other.
    """
    stages = [stage for stage in recipe.stages if stage.choice.name == "train"]
    if not stages:
        raise RecipeError("the recipe has no stage that trains", file=recipe.file, key="stage")
    found = {}
    for stage in stages:
        with wiring.named(recipe, stage.name):
            vocabulary = _vocabulary(recipe)
            if vocabulary is None:
                mend = "put a train_tokenizer stage with a vocabulary before"
                raise RecipeError("no stage says how many tokens there are", file=recipe.file, key="stage", mend=mend)
            plan, _ = _plan(recipe, stage, ranks, vocabulary, smoke=False)
            tried = dry.run(plan)
            found[stage.name] = {"mesh": plan.mesh.describe(), "micro_batches": plan.micro_batches, "not_tried": list(tried.untried), **tried.plain()}
    return {"recipe": recipe.name, "stages": found}


def rehearse(recipe: Recipe, step: wiring.Step, smoke: bool) -> build.Budget | None:
    """Has what a training stage will train with meet, without data or memory, so that what can't be is refused before any stage is done.

    Args:
        smoke: whether the training would be at its smallest.

    Returns:
        what the stage will spend; None where that depends on an earlier model or on a tokenizer to come, and nothing was tried.

    Raises:
        BessemerError: model, tasks, optimizers, what acts around them or budget contradict each other.
    """
    wires = {wire.parameter: wire for wire in step.wires}
    if wires["start"].stages or wires["start"].folder is not None:
        return None
    folder, o = wires["tokenizer"].folder, step.stage.choice.options
    with wiring.named(recipe, step.stage.name):
        vocabulary = _vocabulary(recipe) if folder is None else wires["tokenizer"].wanted.open(folder).vocabulary_size  # type: ignore[attr-defined]
        if vocabulary is None:
            return None
        plan, spend = _plan(recipe, step.stage, None, vocabulary, smoke)
        build.check(plan.work, o["schedule"], o["around"], o["clip"], o["keep"])
        dry.put_together(plan)
    return spend


def _plan(recipe: Recipe, stage: Stage, ranks: int | None, vocabulary: int, smoke: bool) -> tuple[dry.Plan, build.Budget]:
    o, work = stage.choice.options, Work(Path(), recipe.seed, stage.name, smoke)
    length = build.row_length(work, o["length"], o["model"].options)
    choice = o["model"].with_options(length=length) if o["model"].options.get("length") == "auto" else o["model"]
    with torch.device("meta"):
        skeleton = build.adapted(work, choice(vocabulary, 0), o["adapt"], fresh=True)
    ends = {name: o[name] for name in ("steps", "tokens", "seconds", "flops", "batch", "micro_batch")}
    mesh = _mesh(o["mesh"], ranks)
    spend = build.budget(work, skeleton, length, **ends, mesh=mesh)
    plan = dry.Plan(
        model=choice,
        vocabulary=vocabulary,
        mesh=mesh,
        parallel=o["parallel"],
        tasks=o["task"],
        optim=o["optim"],
        dtype=build.number_format(o["precision"], "precision"),
        rows=spend.micro_batch,
        length=length,
        micro_batches=spend.rows // spend.micro_batch,
        compile=device.can_compile() if o["compile"] == "auto" else o["compile"],
        mixed=o["mixed"],
        adapt=o["adapt"],
        around=o["around"],
        work=work,
    )
    return plan, spend


def _mesh(sizes: dict[str, int], ranks: int | None) -> Mesh:
    """The recipe's mesh, its data axis as long as the ranks ask for where the recipe leaves it open."""
    mesh = Mesh.of(sizes)
    if ranks is not None and "data" not in sizes and ranks % mesh.ranks == 0:
        mesh = Mesh.of(sizes | {"data": ranks // mesh.ranks})
    if ranks is not None and mesh.ranks != ranks:
        raise RecipeError(f"{mesh.describe()} takes {mesh.ranks} ranks, and {ranks} are asked for", key="mesh", mend="leave mesh.data open")
    return mesh


def _vocabulary(recipe: Recipe) -> int | None:
    """How many tokens the recipe's tokenizer will have; None: no stage says it."""
    told = (stage.choice.options.get("vocabulary") for stage in recipe.stages)
    return next((each for each in told if isinstance(each, int)), None)


KINDS = 12
"""How many kinds of ranks are shown, the fullest first."""


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, stage in found["stages"].items():
        lines += [
            f"{name}: {stage['mesh']}, {stage['micro_batches']} micro-batch{'es' if stage['micro_batches'] > 1 else ''} a step",
            "",
            "  ranks               parameters   gradients   optimizer activations    gathered",
        ]
        alike: dict[str, list[dict[str, Any]]] = {}
        for row in stage["ranks"]:
            sizes = [row[f"{each}_bytes"] for each in ("parameters", "gradients", "optimizer", "activations", "gathered")]
            alike.setdefault(" ".join(f"{size(each):>11}" for each in sizes), []).append(row)
        shown = list(alike.items())
        for sizes_said, rows in shown[:KINDS]:
            first, last = min(row["first"] for row in rows), max(row["last"] for row in rows)
            which = f"{sum(row['count'] for row in rows):,} of {first}-{last}"
            lines.append(f"  {which:<18} {sizes_said}")
        if shown[KINDS:]:
            lines.append(f"  and {sum(row['count'] for _, rows in shown[KINDS:] for row in rows):,} ranks of other kinds; --json has them all")
        lines += ["", "  each rank sends, a step     along                 ranks    calls       bytes"]
        if stage["not_tried"]:
            lines.insert(
                -2,
                f"  of {', '.join(stage['not_tried'])} the parameters are counted; activations and traffic are those of next-token passes, as theirs depend on their data",
            )
        place = 0
        for t in stage["traffic"]:
            if t.get("pipe", 0) != place:
                place = t["pipe"]
                lines.append(f"  at place {place} of the pipe axis")
            lines.append(f"  {t['kind']:<27} {t['axes']:<20} {t['ranks']:>6} {t['calls']:>8,} {size(t['bytes']):>11}")
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes as people say them: "1.53 GB"."""
    if count is None:
        return "unknown"
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
