"""Recipes: TOML files that extend one another, take dotted overrides, and are checked whole before anything is built."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bessemer.core import registry
from bessemer.core.errors import RecipeError, neighbours

SHIPPED = registry.PACKAGE.parent / "recipes"
STAGES = "run/stages"
TOP = {"extends", "name", "seed", "stage", "about"}
LINKS = {"do", "name", "inputs", "seed"}


@dataclass
class Stage:
    """One stage of a recipe: which method of run/stages, its validated options, where its inputs come from.

    `inputs` maps an artifact kind to a stage's name or to a folder; what is not in it comes from the nearest
    earlier stage that makes that kind. `seed` is the stage's own, None for the recipe's.
    """

    name: str
    choice: registry.Choice
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None

    def plain(self) -> dict[str, Any]:
        return registry.as_plain(self.choice.options)


@dataclass
class Recipe:
    """A recipe read, merged, overridden and validated.

    `given` holds the keys that came from overrides, as paths: ("train", "optim", "0", "lr").
    """

    name: str
    seed: int
    stages: list[Stage]
    file: Path | None
    about: str = ""
    given: frozenset[tuple[str, ...]] = frozenset()

    def file_of(self, key: str) -> Path | None:
        """The file to name beside a key such as `train.optim[0].lr`; None where an override gave it, which no file holds."""
        return _file_of(key, self.file, self.given)

    def plain(self) -> dict[str, Any]:
        """The whole recipe with every default written out, as JSON can hold it."""
        stages = [{"do": s.choice.name, "name": s.name, "inputs": s.inputs, "seed": s.seed, **s.plain()} for s in self.stages]
        return {"name": self.name, "seed": self.seed, "stage": stages}


def read(source: str | Path | dict[str, Any], overrides: dict[str, Any] | list[str] | None = None) -> Recipe:
    """Reads a recipe and checks all of it.

    Args:
        source: a path to a TOML file, the name of a shipped recipe, or a recipe as a dict.
        overrides: `{"train.model.depth": 8}` or `["train.model.depth=8"]`; a key that names no stage goes to every
            stage that has it; `optim.name` on a list goes to its first entry, `optim.matrix.lr` to the one of that role.

    Raises:
        RecipeError: naming the file, the key, the value and the likely mend.
    """
    file = None if isinstance(source, dict) else locate(source)
    raw = _check_shape(deepcopy(source), None) if isinstance(source, dict) else _load(locate(source), ())
    if isinstance(source, dict) and "extends" in raw:
        raw = merge(_load(locate(raw["extends"]), ()), raw)
    given: dict[tuple[str, ...], str] = {}
    for key, value in sorted(_pairs(overrides), key=lambda pair: not pair[0].endswith(".name")):
        given |= dict.fromkeys(_override(raw, key, value), key)
    return _validate(raw, file, given)


def locate(name: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
    path = Path(name)
    tried = [
        path,
        *([beside.parent / path, beside.parent / f"{path}.toml"] if beside else []),
        SHIPPED / f"{path.name}" if path.suffix else SHIPPED / f"{path}.toml",
    ]
    for each in tried:
        if each.is_file():
            return each
    known = sorted(p.stem for p in SHIPPED.glob("*.toml"))
    raise RecipeError(
        "there is no such recipe", file=path, mend=neighbours(path.stem, known) or f"give the path of a TOML file or one of {', '.join(known)}"
    )


def merge(base: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The child's keys over the base's: tables merge, stages merge by name, everything else replaces."""
    out = deepcopy(base)
    for key, value in child.items():
        if key == "stage":
            out["stage"] = _merge_stages(out.get("stage", []), value)
        elif isinstance(value, dict) and isinstance(out.get(key), dict) and value.get("name", out[key].get("name")) == out[key].get("name"):
            out[key] = merge(out[key], value)
        else:
            out[key] = deepcopy(value)
    out.pop("extends", None)
    return out


def _merge_stages(base: list[dict[str, Any]], child: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = deepcopy(base)
    places = {_stage_name(stage): i for i, stage in enumerate(out)}
    for stage in child:
        place = places.get(_stage_name(stage))
        if place is None or stage.get("do", out[place]["do"]) != out[place]["do"]:
            out.append(deepcopy(stage))
        else:
            out[place] = merge(out[place], stage)
    return out


def _stage_name(stage: dict[str, Any]) -> str:
    return str(stage.get("name", str(stage.get("do", "?")).rpartition(".")[2]))


def _load(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in seen:
        raise RecipeError("extends itself", file=file, key="extends")
    try:
        raw = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"is not valid TOML: {error}", file=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"can't be read: {error}", file=file) from None
    raw = {"name": file.stem} | _check_shape(raw, file)  # a child has a name of its own
    if "extends" in raw:
        raw = merge(_load(locate(raw["extends"], file), (*seen, file.resolve())), raw)
    return raw


def _check_shape(raw: dict[str, Any], file: Path | None) -> dict[str, Any]:
    for key in raw:
        if key not in TOP:
            raise RecipeError(
                "there is no such key at the top of a recipe", file=file, key=key, mend=neighbours(key, TOP) or "options belong inside a [[stage]]"
            )
    for key in ("extends", "name", "about"):
        if not isinstance(raw.get(key, ""), str):
            raise RecipeError(f"text is wanted, and {raw[key]!r} is given", file=file, key=key)
    stages = raw.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise RecipeError("stages are written as [[stage]] tables", file=file, key="stage")
    return raw


def _pairs(overrides: dict[str, Any] | list[str] | None) -> list[tuple[str, Any]]:
    if isinstance(overrides, dict):
        return list(overrides.items())
    pairs = []
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"'{text}' is no override", mend="write key=value, for example model.depth=8")
        pairs.append((key.strip(), parse_value(value)))
    return pairs


def parse_value(text: str) -> Any:
    """A command-line value as TOML reads it; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _override(raw: dict[str, Any], key: str, value: Any) -> list[tuple[str, ...]]:
    """Puts an override in its place, and returns the paths of all places it went to."""
    head, *rest = key.split(".")
    stages = raw.get("stage", [])
    if not all((head, *rest)):
        raise RecipeError("a part of the key is empty", key=key, mend="write key=value, for example train.model.depth=8")
    if not rest and head in TOP - {"stage", "extends"}:
        raw[head] = value
        return [(head,)]
    named = [stage for stage in stages if _stage_name(stage) == head]
    if named and rest:
        _write_out(named[0], rest)
        return [(head, *_set(named[0], rest, value, key))]
    takers = [stage for stage in stages if head in _option_names(stage)]
    if named and not takers:
        example = min(_option_names(named[0]), default="seed")
        raise RecipeError(f"'{head}' is a stage, and a key of it is wanted", key=key, mend=f"for example {head}.{example}=value")
    if not takers:
        known = {name for stage in stages for name in _option_names(stage)} | {_stage_name(stage) for stage in stages}
        raise RecipeError(f"no stage has a key '{head}'", key=key, mend=neighbours(head, known))
    places = []
    for stage in takers:
        _write_out(stage, [head, *rest])
        places.append((_stage_name(stage), *_set(stage, [head, *rest], value, key)))
    return places


def _write_out(stage: dict[str, Any], path: list[str]) -> None:
    """Before a part of an option is changed: puts the option's default in its place if the recipe leaves it out."""
    if len(path) > 1 and path[0] not in stage and path[0] in _option_names(stage):
        default = registry.schema(registry.find(STAGES, str(stage["do"]))).model_fields[path[0]].default
        plain = registry.as_plain(default)
        if isinstance(plain, str | list | dict) and plain != "auto":
            stage[path[0]] = deepcopy(plain)


def _option_names(stage: dict[str, Any]) -> set[str]:
    try:
        return set(registry.schema(registry.find(STAGES, str(stage.get("do", "")))).model_fields)
    except RecipeError:
        return set()


def _set(table: Any, path: list[str], value: Any, key: str) -> tuple[str, ...]:
    """Sets a value inside a table, and returns the path it went by, with the number of each list's entry."""
    gone: list[str] = []
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(table, list):
            place = _place(table, part, key)
            if place is None:  # no entry's number, role or name: the first entry
                return (*gone, "0", *_set(table[0], path[depth:], value, key))
            gone.append(str(place))
            if last:
                table[place] = value
                break
            table[place] = _as_table(table[place])
            table = table[place]
            continue
        gone.append(part)
        if last and part == "name" and table.get("name") not in (None, value) and "do" not in table and not _labels(key):
            kept = {tag: table[tag] for tag in ("role",) if tag in table}
            table.clear()  # another method begins from its own defaults
            table.update({"name": value, **kept})
        elif last:
            table[part] = value
        else:
            if not isinstance(table.get(part), list):
                table[part] = _as_table(table.get(part, {}))
            table = table[part]
    return tuple(gone)


def _labels(key: str) -> bool:
    """Whether the `name` at a key's end is what a task is called, and chooses no method."""
    before = [part for part in key.split(".")[:-1] if not part.isdigit()]
    return before[-1:] == ["task"]


def _as_table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"name": value}


def _place(table: list[Any], part: str, key: str) -> int | None:
    if not table:
        raise RecipeError("the list is empty, so there is no entry to change", key=key)
    if part.isdigit():
        if int(part) >= len(table):
            raise RecipeError(f"the list has {len(table)} entries, and number {part} is asked for (they count from 0)", key=key)
        return int(part)
    for place, entry in enumerate(table):
        if isinstance(entry, dict) and part == entry.get("role"):
            return place
    called = [place for place, entry in enumerate(table) if part == _as_table(entry).get("name")]
    if len(called) == 1:
        return called[0]
    table[0] = _as_table(table[0])
    return None


def _validate(raw: dict[str, Any], file: Path | None, given: dict[tuple[str, ...], str]) -> Recipe:
    if not raw.get("stage"):
        raise RecipeError("has no [[stage]], so there is nothing to do", file=file, mend='add one, or begin with extends = "demo"')
    _check_seed(raw, "seed", file, given)
    _check_name(str(raw.get("name", "recipe")), _file_of("name", file, given), "name")
    stages: list[Stage] = []
    for number, table in enumerate(raw["stage"]):
        name = _stage_name(table)
        if name in [stage.name for stage in stages]:
            raise RecipeError(f"two stages are called '{name}'", file=file, key=f"stage[{number}].name", mend="give one of them another name")
        if not isinstance(table.get("do"), str):
            raise RecipeError("says not what to do", file=file, key=f"stage[{number}].do", mend=neighbours("", registry.names(STAGES)))
        _check_name(name, file, f"stage[{number}].name", dots=False)  # a dot would part it in overrides
        try:
            choice = registry.choose(STAGES, {"name": table["do"], **{k: v for k, v in table.items() if k not in LINKS}})
        except registry.PydanticCustomError as error:
            raise _explain(error, file, table, given) from None
        inputs = table.get("inputs", {})
        if not isinstance(inputs, dict) or not all(isinstance(v, str) for v in inputs.values()):
            key = f"{name}.inputs"
            raise RecipeError('inputs is a table such as {corpus = "clean"}', file=_file_of(key, file, given), key=key)
        _check_seed(table, f"{name}.seed", file, given)
        stages.append(Stage(name, choice, inputs, table.get("seed")))
    return Recipe(str(raw.get("name", "recipe")), raw.get("seed") or 0, stages, file, str(raw.get("about", "")), frozenset(given))


def _check_name(name: str, file: Path | None, key: str, dots: bool = True) -> None:
    if not name.replace("_", "").replace("-", "").replace(".", "" if dots else ".").isalnum() or name.startswith("."):
        raise RecipeError(f"'{name}' can't name a folder", file=file, key=key, mend="use letters, digits, - and _")


def _check_seed(table: dict[str, Any], key: str, file: Path | None, given: Iterable[tuple[str, ...]]) -> None:
    seed = table.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RecipeError(f"a whole number is wanted, and {seed!r} is given", file=_file_of(key, file, given), key=key)


def _file_of(key: str, file: Path | None, given: Iterable[tuple[str, ...]]) -> Path | None:
    """The file, unless the key, what holds it, or the method whose option it is was given by an override."""
    path = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
    for each in given:
        place = each[:-1] if each[-1] == "name" and len(each) > 2 else each
        if path[: len(place)] == place or place[: len(path)] == path:
            return None
    return file


def _explain(error: registry.PydanticCustomError, file: Path | None, table: dict[str, Any], given: dict[tuple[str, ...], str]) -> RecipeError:
    context = error.context or {}
    faults = context.get("nested") or [registry.Fault(("do",), error.message(), context.get("mend"))]
    fault = faults[0]
    key = _stage_name(table)
    for part in fault.at:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    mend = _entries(table, fault.at, given) or fault.mend
    return RecipeError(fault.problem + more, file=_file_of(key, file, given), key=key, mend=mend)


def _entries(table: dict[str, Any], at: tuple[str | int, ...], given: dict[tuple[str, ...], str]) -> str | None:
    """How a list's entries are reached, where an override meant one and, naming none, went to the first: `optim.embedding.lr=3`."""
    path = (_stage_name(table), *(str(part) for part in at))
    meant = [key for place, key in given.items() if len(place) > len(path) and place[: len(path)] == path]
    if not (len(at) > 1 and at[-2] == 0 and any(f"{at[-3]}.{at[-1]}." in f"{key}." for key in meant)):
        return None
    entries: Any = table
    for part in at[:-2]:
        entries = entries[part]
    plain = [_as_table(entry) for entry in entries]
    known = [f"{at[-3]}.{number} ({entry.get('role') or entry.get('name', 'without a name')})" for number, entry in enumerate(plain)]
    return f"entries are reached by number, role or name: there is {', '.join(known)}"
