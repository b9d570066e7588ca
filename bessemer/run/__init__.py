"""The run room: stages, the runner, what watches it, reports and comparisons. `bessemer.run(recipe)` calls it."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bessemer.run.runner import Result


class Room(types.ModuleType):
    """This module, made callable: the room and the function that everyone calls first bear one name."""

    def __call__(
        self, recipe: str | Path | dict[str, Any], *, out: str | Path | None = None, smoke: bool = False, quiet: bool = False, **overrides: Any
    ) -> Result:
        """Runs all stages of a recipe; what is done and still right is kept.

        Args:
            recipe: a TOML file, the name of a shipped recipe, or a recipe as a dict.
            out: the run's folder, `runs/NAME` if not given.
            smoke: every stage at its smallest.
            quiet: show no progress.
            overrides: dotted keys, as on the command line: `**{"train.model.depth": 8}`.

        Raises:
            BessemerError: the recipe, the folder or what it reads is not as it must be.
            Stopped: Ctrl-C or SIGTERM came; the same call goes on.
        """
        from pathlib import Path

        from bessemer.core import recipe as recipes
        from bessemer.run import folder, observe, runner

        with patient_collector():
            read = recipes.read(recipe, overrides)
            place = Path(out) if out is not None else folder.default(read.name, smoke)
            return runner.run(read, place, smoke=smoke, watch=observe.watch_for([stage.name for stage in read.stages], quiet))


@contextmanager
def patient_collector() -> Iterator[None]:
    """Looks for garbage cycles after 50,000 new objects instead of 700.

    Importing and compiling make millions of objects that stay; looking through them again and again took a second of the
    seven to the first step.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


sys.modules[__name__].__class__ = Room
