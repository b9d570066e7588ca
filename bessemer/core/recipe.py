"""Recipes: TOML files that extend one another, take dotted overrides, and are checked whole before anything is built."""

from __future__ import annotations

import tomllib
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
    """A recipe read, merged, overridden and validated."""

    name: str
    seed: int
    stages: list[Stage]
    file: Path | None
    about: str = ""

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
    for item in sorted(_pairs(overrides), key=lambda pair: not pair[0].endswith(".name")):
        _override(raw, *item)
    return _validate(raw, file)


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


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if not rest and head in TOP - {"stage", "extends"}:
        raw[head] = value
        return
    stages = raw.get("stage", [])
    named = [stage for stage in stages if _stage_name(stage) == head]
    if named and rest:
        _write_out(named[0], rest.split("."))
        _set(named[0], rest.split("."), value, key)
        return
    takers = [stage for stage in stages if head in _option_names(stage)]
    if not takers:
        known = {name for stage in stages for name in _option_names(stage)} | {_stage_name(stage) for stage in stages}
        raise RecipeError(f"no stage has a key '{head}'", key=key, mend=neighbours(head, known))
    for stage in takers:
        _write_out(stage, key.split("."))
        _set(stage, key.split("."), value, key)


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


def _set(table: Any, path: list[str], value: Any, key: str) -> None:
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(table, list):
            place = _place(table, part, key)
            if place is None:  # no index and no role: the first entry
                _set(table[0], path[depth:], value, key)
                return
            if last:
                table[place] = value
                return
            table[place] = _as_table(table[place])
            table = table[place]
        elif last and part == "name" and table.get("name") not in (None, value) and "do" not in table and not _labels(key):
            kept = {tag: table[tag] for tag in ("role",) if tag in table}
            table.clear()  # another method begins from its own defaults
            table.update({"name": value, **kept})
        elif last:
            table[part] = value
        else:
            if not isinstance(table.get(part), list):
                table[part] = _as_table(table.get(part, {}))
            table = table[part]


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
    table[0] = _as_table(table[0])
    return None


def _validate(raw: dict[str, Any], file: Path | None) -> Recipe:
    if not raw.get("stage"):
        raise RecipeError("has no [[stage]], so there is nothing to do", file=file, mend='add one, or begin with extends = "demo"')
    _check_seed(raw, file, "seed")
    _check_name(str(raw.get("name", "recipe")), file, "name")
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
            raise _explain(error, file, name, table) from None
        inputs = table.get("inputs", {})
        if not isinstance(inputs, dict) or not all(isinstance(v, str) for v in inputs.values()):
            raise RecipeError('inputs is a table such as {corpus = "clean"}', file=file, key=f"{name}.inputs")
        _check_seed(table, file, f"{name}.seed")
        stages.append(Stage(name, choice, inputs, table.get("seed")))
    return Recipe(str(raw.get("name", "recipe")), raw.get("seed") or 0, stages, file, str(raw.get("about", "")))


def _check_name(name: str, file: Path | None, key: str, dots: bool = True) -> None:
    if not name.replace("_", "").replace("-", "").replace(".", "" if dots else ".").isalnum() or name.startswith("."):
        raise RecipeError(f"'{name}' can't name a folder", file=file, key=key, mend="use letters, digits, - and _")


def _check_seed(table: dict[str, Any], file: Path | None, key: str) -> None:
    seed = table.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise RecipeError(f"a whole number is wanted, and {seed!r} is given", file=file, key=key)


def _explain(error: registry.PydanticCustomError, file: Path | None, stage: str, table: dict[str, Any]) -> RecipeError:
    context = error.context or {}
    faults = context.get("nested") or [registry.Fault(("do",), error.message(), context.get("mend"))]
    fault = faults[0]
    key = stage
    for part in fault.at:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    mend = fault.mend
    if mend is None and fault.problem.startswith("there is no such key"):
        mend = neighbours(str(fault.at[-1]), _siblings(table, fault.at))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return RecipeError(fault.problem + more, file=file, key=key, mend=mend)


def _siblings(table: dict[str, Any], at: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand where a fault's last key stands."""
    target = registry.find(STAGES, table["do"])
    value: Any = table
    for part in at[:-1]:
        fields = registry.schema(target).model_fields
        value = value[part] if isinstance(value, dict | list) else None  # type: ignore[index]  # a path found in this very value
        if isinstance(part, str) and part in fields:
            kind = _kind_of(fields[part])
            name = value if isinstance(value, str) else value.get("name") if isinstance(value, dict) else None
            if kind and isinstance(value, list):
                name = None
            if kind and name:
                target = registry.find(kind, name)
        elif isinstance(part, int) and isinstance(value, dict) and "name" in value:
            kind = next((k for k in registry.kinds() if value["name"] in registry.names(k)), None)
            if kind:
                target = registry.find(kind, value["name"])
    return list(registry.schema(target).model_fields)


def _kind_of(info: Any) -> str | None:
    found = [m.kind for m in info.metadata if isinstance(m, registry.Kind)]
    return found[0] if found else None
