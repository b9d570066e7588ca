"""Which artifact goes where: a stage's signature says what it takes, the recipe says from whom."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bessemer.core.artifact import MANIFEST, Artifact, newest
from bessemer.core.errors import BessemerError, RecipeError, neighbours
from bessemer.core.recipe import Recipe, Stage


@dataclass(frozen=True)
class Wire:
    """One artifact parameter of a stage and where its value comes from: stages of the recipe, or a folder of another run."""

    parameter: str
    wanted: type[Artifact]
    many: bool
    stages: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Step:
    """A stage ready to be done: its function, what it makes, and its wires."""

    stage: Stage
    function: Callable[..., Any]
    makes: type[Artifact]
    wires: tuple[Wire, ...]

    @property
    def parents(self) -> list[str]:
        return [name for wire in self.wires for name in wire.stages]


def plan(recipe: Recipe) -> list[Step]:
    """The recipe's stages with every input settled, before anything is done.

    Raises:
        RecipeError: a stage wants a kind nothing makes, or `inputs` names a stage or folder that isn't there or is of another kind.
    """
    steps: list[Step] = []
    for stage in recipe.stages:
        function = stage.choice.target
        parameters, makes = _signature(function, recipe, stage)
        known = {name for name, *_ in parameters} | {wanted.kind for _, wanted, *_ in parameters}
        for key in stage.inputs:
            if key not in known:
                mend = neighbours(key, known) or "it takes no inputs"
                place = f"{stage.name}.inputs.{key}"
                raise RecipeError(f"{stage.choice.name} takes no input called '{key}'", file=recipe.file_of(place), key=place, mend=mend)
        wires = [_wire(recipe, stage, steps, *parameter) for parameter in parameters]
        steps.append(Step(stage, function, makes, tuple(wires)))
    return steps


def needed(steps: list[Step], last: str) -> list[Step]:
    """Of the steps, those that the stage `last` rests on, and itself."""
    by_name = {step.stage.name: step for step in steps}
    wanted, todo = set(), [last]
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += by_name[name].parents
    return [step for step in steps if step.stage.name in wanted]


def _signature(function: Callable[..., Any], recipe: Recipe, stage: Stage) -> tuple[list[tuple[str, type[Artifact], bool, bool]], type[Artifact]]:
    """(parameter, artifact class, takes many, may be absent) for each, and the class of what the stage makes."""
    hints = typing.get_type_hints(function)
    parameters = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        hint, many, optional = hints.get(parameter.name), False, False
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            optional = type(None) in typing.get_args(hint)
            hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        if typing.get_origin(hint) is list:
            many, hint = True, typing.get_args(hint)[0]
        parameters.append((parameter.name, _artifact_class(hint, f"its parameter '{parameter.name}'", recipe, stage), many, optional))
    return parameters, _artifact_class(hints.get("return"), "what it returns", recipe, stage)


def _artifact_class(hint: Any, what: str, recipe: Recipe, stage: Stage) -> type[Artifact]:
    if not (isinstance(hint, type) and issubclass(hint, Artifact)):
        problem = f"'{stage.choice.name}' can't be a stage: {what} is not annotated with an Artifact class"
        raise RecipeError(problem, file=recipe.file, key=f"{stage.name}.do", mend="see docs/adding-a-method.md")
    return hint


def _wire(recipe: Recipe, stage: Stage, earlier: list[Step], parameter: str, wanted: type[Artifact], many: bool, optional: bool) -> Wire:
    key = parameter if parameter in stage.inputs else wanted.kind
    source = stage.inputs.get(key)
    if source is not None:
        return _named(recipe, stage, earlier, f"{stage.name}.inputs.{key}", source, Wire(parameter, wanted, many))
    makers = [step.stage.name for step in earlier if issubclass(step.makes, wanted)]
    if not makers and not optional and not many:
        mend = f'put a stage that makes a {wanted.kind} before it, or name one: inputs = {{{wanted.kind} = "runs/demo"}}'
        raise RecipeError(
            f"{stage.choice.name} needs a {wanted.kind}, and no earlier stage makes one", file=recipe.file, key=f"{stage.name}.inputs", mend=mend
        )
    return Wire(parameter, wanted, many, tuple(makers if many else makers[-1:]))


def _named(recipe: Recipe, stage: Stage, earlier: list[Step], key: str, source: str, wire: Wire) -> Wire:
    """The wire for an input the recipe names: an earlier stage, an artifact's folder, or a run's folder."""
    for step in earlier:
        if step.stage.name == source:
            if not issubclass(step.makes, wire.wanted):
                problem = f"the stage '{source}' makes a {step.makes.kind}, and a {wire.wanted.kind} is wanted"
                raise RecipeError(problem, file=recipe.file_of(key), key=key)
            return Wire(wire.parameter, wire.wanted, wire.many, (source,))
    for folder in [Path(source), *([recipe.file.parent / source] if recipe.file else [])]:
        if folder.is_dir():
            found = find_artifact(folder, wire.wanted)
            wire.wanted.open(found, verify=False)
            return Wire(wire.parameter, wire.wanted, wire.many, folder=found)
    mend = neighbours(source, [step.stage.name for step in earlier]) or "name an earlier stage or the folder of an artifact"
    raise RecipeError(f"'{source}' is neither an earlier stage nor a folder", file=recipe.file_of(key), key=key, mend=mend)


def find_artifact(folder: Path, wanted: type[Artifact]) -> Path:
    """The folder itself if it is an artifact, or else the newest artifact of the wanted kind in a run's folder, if there is one."""
    return folder if (folder / MANIFEST).is_file() else newest(folder, wanted.kind) or folder


@contextmanager
def named(recipe: Recipe, stage: str) -> Iterator[None]:
    """What is found wrong inside with a stage's options is told with the recipe's file and the stage's name."""
    try:
        yield
    except BessemerError as error:
        if error.file is not None or error.key is None:
            raise
        key = error.key if error.key.split(".")[0] == stage else f"{stage}.{error.key}"
        raise type(error)(error.problem, file=recipe.file_of(key), key=key, mend=error.mend) from error
