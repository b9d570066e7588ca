"""One recipe with some keys varied, on the same budget and the same order of data: what differs, and by more than chance?"""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from bessemer.core import files, registry
from bessemer.core import recipe as recipes
from bessemer.core.artifact import MANIFEST, digest
from bessemer.core.errors import BessemerError, RecipeError
from bessemer.core.recipe import Recipe
from bessemer.run import compare_tune, dry_run, observe, runner, wiring
from bessemer.run.compare_options import Budget, parse_budget
from bessemer.run.compare_table import Variant, ending, rows
from bessemer.run.report_data import METRICS, read_metrics
from bessemer.train import memory

RESULT = "compare.json"
TRIAL = 0.5
"""The length of a tuning trial, as a share of a training's."""


def compare(
    source: str | Path, vary: dict[str, list[Any]], out: Path | None = None, *, budget: str | None = None, seeds: int = 1,
    tune: dict[str, int | list[Any]] | None = None, tuner: compare_tune.Tuner = "grid", target: float | None = None,
    overrides: list[str] | None = None, smoke: bool = False, watch: observe.Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains every combination of the varied values, as far as that isn't done yet, and writes what came of it.

    What the variants share, the data above all, is made once: every artifact stands in `OUT/store` under its key. Seeds
    change the weights' beginning and the order of data in the training stage alone; variants of one seed share both. Variants that an
    earlier call with the same recipe, budget and tuning left in `OUT` stay in the table, if as much of the budget went into their trainings.

    A variant whose training fails stands in the table with what went wrong, and the others are trained all the same.

    With `tune` a variant's whole spending, tuning included, is still the budget times the seeds: every trial is half as long as a
    training. (Much shorter ones find rates for the warm-up alone.)

    Args:
        source: the recipe.
        vary: key -> values.
        out: where runs and results go, `runs/NAME-compare` if not given.
        budget: what each training may spend (see compare_options.parse_budget).
        seeds: how often each variant is trained.
        tune: key -> how many values around each variant's own, or the values.
        target: held-out bits per byte to be reached; by default what the first variant reaches.

    Returns:
        what is written to `compare.json`.

    Raises:
        BessemerError: a key, value or budget isn't possible, and nothing is run then; a stage fails that all variants share; or every variant fails.
    """
    if seeds < 1:
        raise BessemerError(f"{seeds} runs of each variant can't be made", key="--seeds", mend="give 1 or more")
    if target is not None and not math.isfinite(target):
        raise BessemerError(f"{target} can't be reached", key="--target", mend="give held-out bits per byte, such as 1.8, or leave it out")
    variants = [Variant(dict(zip(vary, values, strict=True))) for values in itertools.product(*vary.values())]
    limit, tune, base = parse_budget(budget), tune or {}, recipes.read(source, overrides)
    if tune and limit.unit is None:
        raise BessemerError("trials take a part of the budget, and there is none", key="--tune", mend="add --budget tokens=3M, for example")
    place = out or Path("runs") / f"{base.name}-compare{'-smoke' if smoke else ''}"
    bench = Bench(source, overrides, place, limit, smoke, watch or observe.Watch())
    share = seeds / (seeds + TRIAL * compare_tune.trials(tune))
    search = compare_tune.search_optuna(tune, base.seed) if tuner == "optuna" and tune else compare_tune.search_grid(tune)
    bench.check(variants, tune, seeds, share)
    if smoke:
        bench.watch.note("compare", "a smoke test trains each variant for a moment in one process, whatever its budget and its mesh")
    for variant in variants:
        bench.tune(variant, tune, search, TRIAL * share)
        for seed in range(seeds):
            bench.train(variant, seed, share, f" (seed {seed})" if seeds > 1 else "")
    if not any(variant.curves for variant in variants):
        raise bench.failures[0]
    made_of = digest([base.plain(), budget, dict(tune), tuner if tune else "", smoke, share])
    variants += _earlier(place, made_of, [variant.settings for variant in variants])
    spent = "a smoke test's" if smoke else budget
    table: dict[str, Any] = {"recipe": base.name, "budget": spent, "seeds": seeds, "tune": tune, "made_of": made_of, "first": variants[0].name}
    table["variants"] = rows(variants, target, limit)
    from bessemer.run.compare_page import write

    write(place, table, variants)
    return table | {"folder": str(place)}


class Bench:
    """Where the trainings of one comparison are run.

    Attributes:
        stages: of each variant, what its training and the stages it rests on are made by.
        failures: what made trainings fail.
    """

    def __init__(self, source: str | Path, overrides: list[str] | None, place: Path, budget: Budget, smoke: bool, watch: observe.Watch) -> None:
        self.source, self.place, self.budget, self.smoke, self.watch = source, place, budget, smoke, watch
        self.given: dict[str, Any] = dict(recipes._pairs(overrides))
        self.stages: list[list[Any]] = []
        self.failures: list[BessemerError] = []

    def recipe(self, settings: dict[str, Any], seed: int, share: float) -> Recipe:
        """The recipe of one run. Its stages before the training keep the recipe's seed, so that they are shared."""
        given = self.given | settings
        recipe = recipes.read(self.source, given)
        train = training(recipe)
        known = set(registry.schema(next(s for s in recipe.stages if s.name == train).choice.target).model_fields)
        more: dict[str, Any] = {f"{train}.seed": recipe.seed + seed} if seed else {}
        return recipes.read(self.source, given | more | self.budget.overrides(train, known, share))

    def check(self, variants: list[Variant], tune: dict[str, int | list[Any]], seeds: int, share: float) -> None:
        """Plans every run, and puts together without data what each trains with, so that mistakes come out before the first training.

        What only data, or an earlier model, can tell comes out later, and is then the variant's own failure.
        """
        self._one_name_each(list(variants[0].settings), variants[0].settings)
        for variant in variants:
            plans = [self.recipe(variant.settings, seed, share) for seed in range(seeds)]
            if tune:
                keys, own = self._own(variant, tune)
                plans += [self.recipe(variant.settings | setting, 0, TRIAL * share) for setting in compare_tune.grid(keys, own)]
            for recipe in plans:
                self._rehearse(recipe)
            self.stages.append(_made_by(plans[0], training(plans[0])))
            same = variants[self.stages.index(self.stages[-1])]
            if same is not variant:
                key = next((key for key in variant.settings if variant.settings[key] != same.settings[key]), "--vary")
                raise BessemerError(
                    f"{same.name} and {variant.name} are the same training",
                    key=key,
                    mend="vary what the training, or a stage before it, is made of",
                )

    def _one_name_each(self, keys: list[str], settings: dict[str, Any]) -> None:
        """Refuses two keys that mean the same."""
        recipe = recipes.read(self.source, self.given | settings)
        train, full = training(recipe), dict[str, str]()
        for key in keys:
            with suppress(RecipeError):  # another stage's
                name, _ = compare_tune.own_value(recipe, train, key)
                if full.setdefault(name, key) != key:
                    raise BessemerError(
                        f"'{full[name]}' and '{key}' are the same key", key="--vary", mend=f"write all its values at once: {key}=a,b,c"
                    )

    def _rehearse(self, recipe: Recipe) -> None:
        step = next(step for step in wiring.plan(recipe) if step.stage.name == training(recipe))
        if step.stage.choice.name != "train":
            return  # a user's own
        try:
            spend = dry_run.rehearse(recipe, step, self.smoke)
        except RecipeError as error:
            if error.key == f"{step.stage.name}.{self.budget.unit}":
                raise BessemerError(error.problem, key="--budget", mend=error.mend) from error
            raise
        if spend is not None:
            self.budget.enough(spend.tokens, spend.rows * spend.length)

    def tune(self, variant: Variant, tune: dict[str, int | list[Any]], search: compare_tune.Search, part: float) -> None:
        """Finds the variant's own values of the tuned keys by short trainings at the first seed."""
        if not tune:
            return
        keys, own = self._own(variant, tune)
        short = dict(zip(keys, tune, strict=True))

        def score(setting: dict[str, Any]) -> float:
            setting = {full: setting[key] for full, key in short.items()}
            said = ", ".join(f"{short[full]}={value}" for full, value in setting.items())
            trial = Variant(variant.settings | setting)
            self._run(trial, 0, part, f"{variant.name}, trying {said}")
            found = ending(trial.curves[0], trial.infos[0])["final"] if trial.curves else None
            return found if found is not None and math.isfinite(found) else math.inf

        tried = search({key: own[full] for full, key in short.items()}, score)
        best = min(tried, key=lambda pair: pair[0])[1]
        variant.tuned = {full: best[key] for full, key in short.items()}
        for key in short.values():
            values = [setting[key] for _, setting in tried]
            numbers = sorted({value for value in values if isinstance(value, int | float)})
            if len(numbers) > 2 and best[key] in (numbers[0], numbers[-1]):
                variant.edge.append(key)

    def train(self, variant: Variant, seed: int, share: float, label: str) -> None:
        """One whole training of a variant, tuned values and all."""
        tuned = Variant(variant.settings | variant.tuned)
        self._run(tuned, seed, share, variant.name + label)
        for mine, its in (
            (variant.curves, tuned.curves),
            (variant.infos, tuned.infos),
            (variant.folders, tuned.folders),
            (variant.failed, tuned.failed),
        ):
            mine += its  # type: ignore[operator]

    def _run(self, variant: Variant, seed: int, share: float, label: str) -> None:
        recipe = self.recipe(variant.settings, seed, share)
        last = training(recipe)
        memory.give_back()  # what earlier trainings left in this process is not this one's
        watch = Labelled(self.watch, label)
        try:
            result = runner.run(recipe, self.place, smoke=self.smoke, watch=watch, store=self.place / "store", last=last, what="comparison")
        except BessemerError as error:
            if not watch.at or (watch.at != last and self._shared(_made_by(recipe, watch.at))):
                raise
            variant.failed.append(error.problem)
            self.failures.append(error)
            return
        made = result.artifacts[last]
        variant.curves.append(read_metrics(variant.name, made.folder / METRICS))
        variant.infos.append(made.info)
        variant.folders.append(str(made.folder))

    def _shared(self, stages: list[Any]) -> bool:
        """Whether every variant has these stages."""
        return all(stage in those for those in self.stages for stage in stages)

    def _own(self, variant: Variant, tune: dict[str, int | list[Any]]) -> tuple[dict[str, int | list[Any]], dict[str, Any]]:
        """The tuned keys in full, and the variant's own values of them."""
        recipe = recipes.read(self.source, self.given | variant.settings)
        found = [compare_tune.own_value(recipe, training(recipe), key) for key in tune]
        return {full: value for (full, _), value in zip(found, tune.values(), strict=True)}, dict(found)


def training(recipe: Recipe) -> str:
    """The stage that is compared: the last one that trains."""
    found = [stage.name for stage in recipe.stages if stage.choice.name.rpartition(".")[2] == "train"]
    if not found:
        raise RecipeError("has no stage that trains, so there is nothing to compare", file=recipe.file, mend='add one: [[stage]] with do = "train"')
    return found[-1]


def _made_by(recipe: Recipe, last: str) -> list[Any]:
    """The tables of the stage `last` and of those it rests on."""
    names = {step.stage.name for step in wiring.needed(wiring.plan(recipe), last)}
    return [table for table in recipe.plain()["stage"] if table["name"] in names]


def _earlier(place: Path, made_of: str, now: list[dict[str, Any]]) -> list[Variant]:
    """Variants that an earlier comparison of the same things left here."""
    if not (place / RESULT).is_file():
        return []
    table = files.read_json(place / RESULT)
    if not isinstance(table, dict) or table.get("made_of") != made_of:
        return []
    found = []
    for row in table["variants"]:
        folders = [Path(each) for each in row["folders"]]
        if row["settings"] in now or not folders or not all((folder / MANIFEST).is_file() for folder in folders):
            continue
        curves = [read_metrics(row["name"], folder / METRICS) for folder in folders]
        infos = [files.read_json(folder / MANIFEST)["info"] for folder in folders]
        found.append(Variant(row["settings"], row["tuned"], row["edge"], curves, infos, row["folders"], row["failed"]))
    return found


class Labelled(observe.Watch):
    """Passes on what a variant's run does under the variant's name.

    Attributes:
        at: the stage that was begun last.
    """

    def __init__(self, watch: observe.Watch, label: str) -> None:
        self._watch, self._label = watch, label
        self.at = ""

    def begin(self, stage: str) -> None:
        self.at = stage
        self._watch.begin(f"{self._label}: {stage}")

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        self._watch.progress(f"{self._label}: {stage}", done, total, unit, figures)

    def note(self, stage: str, text: str) -> None:
        self._watch.note(f"{self._label}: {stage}", text)

    def end(self, stage: str, seconds: float) -> None:
        self._watch.end(f"{self._label}: {stage}", seconds)
