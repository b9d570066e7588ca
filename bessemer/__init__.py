"""From raw text to a trained, evaluated, exported and served model: every published training method one small file.

import bessemer

run = bessemer.run("demo", **{"train.model.depth": 8})   # all stages of a recipe; the same call resumes
model = bessemer.load("runs/demo")                       # a run's or a model's folder, ours or Hugging Face's
bessemer.methods("optim")                                # what there is, from the sources' docstrings
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bessemer.core.registry import Entry
    from bessemer.run.runner import Result

__all__ = ["load", "methods", "run"]


def run(recipe: str | Path | dict[str, Any], *, out: str | Path | None = None, smoke: bool = False, quiet: bool = False, **overrides: Any) -> Result:
    """Runs all stages of a recipe; what is done and still right is kept.

    Args:
        recipe: a TOML file, the name of a shipped recipe, or a recipe as a dict.
        out: the run's folder, `runs/NAME` if not given.
        smoke: every stage at its smallest.
        quiet: show no progress.
        overrides: dotted keys, as on the command line: `**{"train.model.depth": 8}`.

    Raises:
        bessemer.core.errors.BessemerError: the recipe, the folder or what it reads is not as it must be.
    """
    from pathlib import Path

    from bessemer.core import recipe as recipes
    from bessemer.run import folder, observe, runner

    read = recipes.read(recipe, overrides)
    place = Path(out) if out is not None else folder.default(read.name, smoke)
    return runner.run(read, place, smoke=smoke, watch=observe.watch_for([stage.name for stage in read.stages], quiet))


def load(folder: str | Path) -> Any:
    """The model in a folder: a run's, a model's of ours, or a Hugging Face one. `model(tokens)` gives logits.

    Raises:
        bessemer.core.errors.ArtifactError: there is no model in it, or it is torn or altered.
    """
    from bessemer.models import package

    return package.load(folder)


def methods(kind: str | None = None) -> list[Entry]:
    """Every method there is, or those of one kind, read from the sources without importing them."""
    from bessemer.run import catalogue

    return catalogue.listed(kind)
