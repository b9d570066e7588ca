"""Tuning: every variant gets the same number of short trainings to find its own values of some keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from bessemer.core.errors import BessemerError, RecipeError
from bessemer.core.recipe import Recipe

Tuner = Literal["grid", "optuna"]
STEP = math.sqrt(10.0)
"""The factor between two neighbours of a grid around a number."""
SPREAD = 10.0
"""How far above and below a number optuna looks."""


class Search(Protocol):
    """Proposes settings of the tuned keys, one after another, and hears what came of each before the next."""

    def __call__(self, around: dict[str, Any], score: Callable[[dict[str, Any]], float]) -> list[tuple[float, dict[str, Any]]]: ...


def trials(tune: dict[str, int | list[Any]]) -> int:
    """How many trainings tuning takes for each variant."""
    return math.prod(value if isinstance(value, int) else len(value) for value in tune.values()) if tune else 0


def grid(tune: dict[str, int | list[Any]], around: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination: the values given, or so many around the variant's own, each sqrt(10) times the one before it."""
    axes = [value if isinstance(value, list) else _around(key, around[key], value) for key, value in tune.items()]
    for values in itertools.product(*axes):
        yield dict(zip(tune, values, strict=True))


def search_grid(tune: dict[str, int | list[Any]]) -> Search:
    """Tries the whole grid."""

    def search(around: dict[str, Any], score: Callable[[dict[str, Any]], float]) -> list[tuple[float, dict[str, Any]]]:
        return [(score(setting), setting) for setting in grid(tune, around)]

    return search


def search_optuna(tune: dict[str, int | list[Any]], seed: int) -> Search:
    """Lets optuna's sampler (Bergstra et al. 2011, TPE) choose as many settings as the grid would have.

    It is seeded and told the same results in the same order, so a comparison that was stopped goes on as it would have.

    Raises:
        BessemerError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise BessemerError("optuna is not installed", key="--tuner", mend="pip install optuna, or --tuner grid") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def search(around: dict[str, Any], score: Callable[[dict[str, Any]], float]) -> list[tuple[float, dict[str, Any]]]:
        study, found = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed)), []
        for _ in range(trials(tune)):
            trial = study.ask()
            setting = {key: _suggest(trial, key, value, around.get(key)) for key, value in tune.items()}
            result = score(setting)
            if math.isfinite(result):
                study.tell(trial, result)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            found.append((result, setting))
        return found

    return search


def own_value(recipe: Recipe, stage: str, key: str) -> tuple[str, Any]:
    """The full key that `key` means in a recipe, and its value there; `lr` alone is the first optimizer's.

    Raises:
        RecipeError: there is no such key.
    """
    table: Any = next(each.plain() for each in recipe.stages if each.name == stage)
    path = key.split(".")
    if path[0] == stage and len(path) > 1:
        path = path[1:]
    for full in (path, ["optim", *path]):
        found, value = _walk(table, full)
        if found:
            return ".".join([stage, *full]), value
    raise RecipeError(
        f"there is no '{key}' to tune", file=recipe.file, key="--tune", mend="name a key of the training stage, such as lr or optim.weight_decay"
    )


def _walk(value: Any, path: list[str]) -> tuple[bool, Any]:
    for part in path:
        if isinstance(value, list) and value:
            by_role = [entry for entry in value if isinstance(entry, dict) and entry.get("role") == part]
            if part.isdigit() or by_role:
                value = by_role[0] if by_role else value[int(part)] if int(part) < len(value) else None
                continue
            value = value[0]
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise RecipeError(
            f"'{key}' is {value!r} here, and only a number above 0 has others around it", key="--tune", mend=f"name its values: {key}=a,b,c"
        )
    return value


def _around(key: str, value: Any, count: int) -> list[float]:
    centre = _number(key, value)
    found = [float(f"{centre * STEP ** (place - (count - 1) / 2):.4g}") for place in range(count)]
    return [max(1, round(each)) for each in found] if isinstance(value, int) else found


def _suggest(trial: Any, key: str, value: int | list[Any], own: Any) -> Any:
    if isinstance(value, list):
        return trial.suggest_categorical(key, value)
    centre = _number(key, own)
    if isinstance(own, int):
        return trial.suggest_int(key, max(1, round(centre / SPREAD)), round(centre * SPREAD), log=True)
    return float(f"{trial.suggest_float(key, centre / SPREAD, centre * SPREAD, log=True):.4g}")
