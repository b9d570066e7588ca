"""One recipe with some keys varied, on the same budget and the same order of data: what differs, and by more than chance?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from bessemer.core import recipe as recipes
from bessemer.core.errors import BessemerError, RecipeError
from bessemer.core.recipe import Recipe
from bessemer.run import observe, runner, wiring
from bessemer.run.report_data import METRICS, Curve, read_metrics

BUDGETS = ("tokens", "seconds", "steps")
SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


@dataclass
class Variant:
    """One setting of the varied keys, with its runs, one for each seed.

    Attributes:
        settings: key -> value.
        curves: the metrics of each seed's training.
        folders: where each seed's model stands.
    """

    settings: dict[str, Any]
    curves: list[Curve] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "as written"


def parse_vary(texts: list[str]) -> dict[str, list[Any]]:
    """`["optim.name=adamw,muon", "model.depth=4,8"]` -> key -> its values.

    Raises:
        BessemerError: no values, or a key twice.
    """
    out: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise BessemerError(f"'{text}' doesn't say what to vary", key="--vary", mend="write key=a,b,c, for example optim.name=adamw,muon")
        if key in out:
            raise BessemerError(f"'{key}' is varied twice", key="--vary", mend=f"write all its values at once: {key}=a,b,c")
        out[key] = [recipes.parse_value(value.strip()) for value in _split(values)]
        if len({repr(value) for value in out[key]}) < len(out[key]):
            raise BessemerError(f"'{text}' names a value twice", key="--vary")
    return out


def parse_budget(text: str) -> tuple[str, float]:
    """`tokens=2M`, `seconds=60` or `steps=500`.

    Raises:
        BessemerError: another word, or no positive number.
    """
    name, _, amount = text.partition("=")
    factor = SUFFIXES.get(amount[-1:], 1)
    try:
        value = float(amount[:-1] if factor > 1 else amount) * factor
    except ValueError:
        value = 0.0
    if name not in BUDGETS or not 0 < value < float("inf"):
        raise BessemerError(f"'{text}' is no budget", key="--budget", mend="write tokens=2M, seconds=60 or steps=500")
    return name, value if name == "seconds" else int(value)


def compare(
    source: str | Path, vary: dict[str, list[Any]], out: Path | None = None, *, budget: str | None = None, seeds: int = 1,
    overrides: list[str] | None = None, smoke: bool = False, watch: observe.Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains every combination of the varied values, as far as that isn't done yet, and writes what came of it.

    What the variants share, the data above all, is made once: every artifact stands in `OUT/store` under its key. Seeds
    change the weights' beginning and the order of data in the training stage alone; variants of one seed share both.

    Args:
        source: the recipe.
        vary: key -> values.
        out: where runs and results go, `runs/NAME-compare` if not given.
        budget: what each training may spend.
        seeds: how often each variant is trained.

    Returns:
        what is written to `compare.json`.

    Raises:
        BessemerError: a key, value or budget isn't possible; nothing is run then.
    """
    if seeds < 1:
        raise BessemerError(f"{seeds} runs of each variant can't be made", key="--seeds", mend="give 1 or more")
    variants = [Variant(dict(zip(vary, values, strict=True))) for values in itertools.product(*vary.values())]
    limit = parse_budget(budget) if budget else None
    base = recipes.read(source, overrides)
    place = out or Path("runs") / f"{base.name}-compare{'-smoke' if smoke else ''}"
    jobs = [(variant, seed, _recipe(source, overrides, variant, limit, seed)) for variant in variants for seed in range(seeds)]
    for _, _, each in jobs:
        wiring.plan(each)  # every mistake comes out before the first training
    watch = watch or observe.Watch()
    for variant, seed, each in jobs:
        last = _training(each)
        label = variant.name + (f" (seed {seed})" if seeds > 1 else "")
        result = runner.run(each, place, smoke=smoke, watch=Labelled(watch, label), store=place / "store", last=last, what="comparison")
        folder = result.artifacts[last].folder
        variant.curves.append(read_metrics(variant.name, folder / METRICS))
        variant.folders.append(str(folder))
    from bessemer.run.compare_page import write

    table = tabulate(base, variants, budget, seeds)
    write(place, table, variants)
    return table | {"folder": str(place)}


def tabulate(base: Recipe, variants: list[Variant], budget: str | None, seeds: int) -> dict[str, Any]:
    """The results as plain values: a row for each variant, best first, and how it stands to the best one."""
    rows = [row(variant) for variant in variants]
    ranked = sorted(rows, key=lambda each: (each["final"] is None, each["final"] or 0.0))
    for each in ranked[1:]:
        each["verdict"] = verdict(ranked[0], each)
    return {"recipe": base.name, "budget": budget, "seeds": seeds, "variants": ranked}


def row(variant: Variant) -> dict[str, Any]:
    """One variant's figures, averaged over its seeds.

    `final` is the last held-out bits per byte, the mean over domains, and `final_by_seed` its values; without held-out
    measures it is the training loss over the last twentieth.
    """
    ends = [ending(curve) for curve in variant.curves]
    finals = [end["final"] for end in ends if end["final"] is not None]
    out: dict[str, Any] = {"name": variant.name, "settings": variant.settings}
    for key in ("final", "best", "loss", "tokens_per_second", "tokens", "steps", "seconds", "peak_memory"):
        values = [value for end in ends if (value := end[key]) is not None]
        out[key] = mean(values) if values else None
    return out | {"spread": stdev(finals) if len(finals) > 1 else None, "final_by_seed": finals, "folders": variant.folders, "verdict": ""}


def ending(curve: Curve) -> dict[str, float | None]:
    """Where one training came to."""
    losses = curve.column("loss")[1]
    tail = losses[-max(1, len(losses) // 20) :]
    loss = mean(tail) if tail else None
    kept = [score for _, score in curve.scores()]
    rates, memory = curve.column("tokens_per_second")[1], curve.column("memory_bytes")[1]
    last = curve.steps[-1] if curve.steps else {}
    return {
        "final": kept[-1] if kept else loss,
        "best": min(kept) if kept else loss,
        "loss": loss,
        "tokens_per_second": median(rates) if rates else None,
        "tokens": last.get("tokens"),
        "steps": last.get("step"),
        "seconds": last.get("seconds"),
        "peak_memory": max(memory) if memory else None,
    }


def verdict(best: dict[str, Any], other: dict[str, Any]) -> str:
    """How a variant stands to the best: the difference, and whether chance alone may make it.

    With more seeds than one it is Welch's unequal-variances t-test (Welch 1947) at 5%; with one seed nothing is known of chance.
    """
    if best["final"] is None or other["final"] is None:
        return "no result"
    difference = f"{other['final'] - best['final']:+.4f}"
    a, b = best["final_by_seed"], other["final_by_seed"]
    if len(a) < 2 or len(b) < 2:
        return f"{difference} (one seed: chance unknown)"
    from scipy.stats import ttest_ind

    if stdev(a) == stdev(b) == 0:
        return difference if a != b else f"{difference} (the same)"
    p = float(ttest_ind(a, b, equal_var=False).pvalue)
    return f"{difference} (within noise, p = {p:.2f})" if p > 0.05 else f"{difference} (p = {p:.2g})"


class Labelled(observe.Watch):
    """Passes on what a variant's run does under the variant's name."""

    def __init__(self, watch: observe.Watch, label: str) -> None:
        self._watch, self._label = watch, label

    def begin(self, stage: str) -> None:
        self._watch.begin(f"{self._label}: {stage}")

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: dict[str, Any]) -> None:
        self._watch.progress(f"{self._label}: {stage}", done, total, unit, figures)

    def note(self, stage: str, text: str) -> None:
        self._watch.note(f"{self._label}: {stage}", text)

    def end(self, stage: str, seconds: float) -> None:
        self._watch.end(f"{self._label}: {stage}", seconds)


def _recipe(source: str | Path, overrides: list[str] | None, variant: Variant, limit: tuple[str, float] | None, seed: int) -> Recipe:
    """The recipe of one run. Its stages before the training keep the recipe's seed, so that they are shared."""
    given: dict[str, Any] = dict(recipes._pairs(overrides)) | variant.settings
    recipe = recipes.read(source, given)
    train = _training(recipe)
    more: dict[str, Any] = {f"{train}.seed": recipe.seed + seed} if seed else {}
    if limit:
        more |= {f"{train}.{name}": None for name in BUDGETS} | {f"{train}.{limit[0]}": limit[1]}
    return recipes.read(source, given | more)


def _training(recipe: Recipe) -> str:
    """The stage that is compared: the last one that trains."""
    found = [stage.name for stage in recipe.stages if stage.choice.name.rpartition(".")[2] == "train"]
    if not found:
        raise RecipeError("has no stage that trains, so there is nothing to compare", file=recipe.file, mend='add one: [[stage]] with do = "train"')
    return found[-1]


def _split(text: str) -> Iterator[str]:
    """The values between commas; those inside brackets, braces or quotes stay whole."""
    depth, quoted, current = 0, False, ""
    for character in text:
        quoted ^= character == '"'
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quoted:
            yield current
            current = ""
        else:
            current += character
    yield current
