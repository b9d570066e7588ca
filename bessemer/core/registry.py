"""The registry: a method is a file in the folder of its kind, and its signature is its schema.

A kind is a folder of the package (`optim`, `data/clean`, `train/hooks`). A method's name is its file's name; the method
is the class or function in that file whose name matches it. What stands before `*` in the signature it gets at run time;
what stands after `*` are its options, read from the recipe and validated against the type hints. A name with a dot in it
is a user's own method outside the package (`mypackage.mymodule.MyThing`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic_core import PydanticCustomError, core_schema

from bessemer.core import outside
from bessemer.core.errors import RecipeError, neighbours

PACKAGE = Path(__file__).resolve().parents[1]
Auto = Literal["auto"]
"""The value of an option that is worked out from the others and recorded in the resolved recipe."""


@dataclass(frozen=True)
class Entry:
    """One method as `bessemer methods` shows it, read without importing it."""

    kind: str
    name: str
    summary: str
    doc: str
    file: Path


def kinds() -> list[str]:
    """Every folder of the package that holds methods: its `__init__.py` begins with "Kind:" and states the contract."""
    return sorted(init.parent.relative_to(PACKAGE).as_posix() for init in PACKAGE.rglob("__init__.py") if init.read_text().startswith('"""Kind:'))


def names(kind: str) -> list[str]:
    """The methods of one kind, by name."""
    return sorted(file.stem for file in (PACKAGE / kind).glob("*.py") if _symbol(file))


def entries(kind: str | None = None) -> Iterator[Entry]:
    """What there is, from the sources' docstrings; nothing is imported."""
    for each in [kind] if kind else kinds():
        for name in names(each):
            file = PACKAGE / each / f"{name}.py"
            tree = ast.parse(file.read_text())
            node = next(n for n in tree.body if getattr(n, "name", None) == _symbol(file))
            doc = inspect.cleandoc(ast.get_docstring(node) or "")  # type: ignore[arg-type]
            yield Entry(each, name, doc.split("\n\n")[0].replace("\n", " "), doc, file)


def find(kind: str, name: str) -> Callable[..., Any]:
    """The class or function called `name` in the folder `kind`.

    Raises:
        RecipeError: there is none, and its neighbours are suggested; or its file can't be read, or is not what the kind asks for.
    """
    if "." in name:
        return _outside(kind, name)
    file = PACKAGE / kind / f"{name}.py"
    if not name.isidentifier() or name.startswith("_") or not file.exists():
        raise RecipeError(f"there is no '{name}' in {kind}", mend=neighbours(name, names(kind)))
    symbol = _symbol(file)
    if symbol is None:
        raise _broken(kind, file)
    module = importlib.import_module(".".join(["bessemer", *Path(kind).parts, name]))
    return getattr(module, symbol)


@dataclass(frozen=True)
class Kind:
    """Marks an option that names a method: `Annotated[Choice, Kind("optim", role=str)]`.

    Keyword arguments are tags: keys that may stand beside the method's own options and are not passed to it.
    """

    kind: str
    tags: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init__(self, kind: str, **tags: Any) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "tags", tags)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: choose(self.kind, value, self.tags), serialization=core_schema.plain_serializer_function_ser_schema(as_plain)
        )


@dataclass(frozen=True)
class Choice:
    """A method picked by a recipe, with its validated options; calling it supplies the run-time arguments."""

    kind: str
    name: str
    options: dict[str, Any]
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> Callable[..., Any]:
        return find(self.kind, self.name)

    def __call__(self, *runtime: Any, **more: Any) -> Any:
        return self.target(*runtime, **{**self.options, **more})

    def with_options(self, **changed: Any) -> Choice:
        """The same method with some options replaced: how `auto` values are resolved."""
        return choose(self.kind, {"name": self.name, **self.tags, **self.options, **changed}, dict.fromkeys(self.tags, Any))


def choose(kind: str, value: Any, tags: Mapping[str, Any] | None = None) -> Choice:
    """Validates `"name"` or `{name = "...", option = ...}` against the method's signature."""
    if isinstance(value, Choice):
        if value.kind != kind:
            raise PydanticCustomError("kind", f"'{value.name}' is of kind {value.kind}, and {kind} is wanted")
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise PydanticCustomError("choice", "a name, or a table with a name, is wanted here: one of {known}", {"known": ", ".join(names(kind))})
    given = {key: item for key, item in value.items() if key != "name"}
    kept = {tag: given.pop(tag) for tag in list(given) if tags and tag in tags}
    try:
        target = find(kind, value["name"])
    except RecipeError as error:
        raise PydanticCustomError("unknown_method", "{problem}", {"problem": error.problem, "mend": error.mend, "at": ["name"]}) from None
    try:
        fields: dict[str, Any] = {k: (v | None, None) for k, v in (tags or {}).items() if v is not Any}
        wanted_tags = pydantic.create_model("Tags", __config__=_STRICT, **fields)
        wanted_tags.model_validate({k: v for k, v in kept.items() if (tags or {}).get(k) is not Any})
        options = schema(target).model_validate(given)
    except pydantic.ValidationError as error:
        nested = flatten(error, schema(target), tags or {})
        raise PydanticCustomError("options", "options of {name}", {"name": value["name"], "nested": nested}) from None
    return Choice(kind, value["name"], {key: getattr(options, key) for key in type(options).model_fields}, kept)


_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@cache
def schema(target: Callable[..., Any]) -> type[pydantic.BaseModel]:
    """The pydantic model of a method's options: its keyword-only parameters."""
    function = target.__init__ if inspect.isclass(target) else target
    options = [p for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    meant = hints(target)
    fields: dict[str, Any] = {}
    for parameter in options:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (meant.get(parameter.name, Any), pydantic.Field(default, validate_default=True))
    return pydantic.create_model(target.__name__, __config__=_STRICT, **fields)


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a method's options, ranges included; other parameters may name classes that are imported only for the type checker."""
    function = target.__init__ if inspect.isclass(target) else target
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]

    def holder() -> None: ...

    holder.__annotations__ = {name: hint for name, hint in inspect.get_annotations(function).items() if name in wanted}
    return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)


MISSING = "this key is needed and missing"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe: where, what, and the value found there."""

    at: tuple[str | int, ...]
    problem: str
    mend: str | None = None


def flatten(error: pydantic.ValidationError, model: type[pydantic.BaseModel], tags: Iterable[str] = ()) -> list[Fault]:
    """The faults in a validation error, those of nested methods included, with their full paths.

    Args:
        model: what was validated; a key it doesn't have is told with those it has.
        tags: further keys that may stand beside the model's own.
    """
    faults: list[Fault] = []
    for detail in error.errors(include_url=False):
        at = tuple(part for part in detail["loc"] if not str(part).startswith(("function-", "literal", "list[", "constrained")))
        context = detail.get("ctx", {})
        if "nested" in context:
            faults += [Fault((*at, *inner.at), inner.problem, inner.mend) for inner in context["nested"]]
        elif detail["type"] == "extra_forbidden":
            known = {*_keys(model, at[:-1]), *(tags if len(at) == 1 else ())}
            faults.append(Fault(at, "there is no such key", neighbours(str(at[-1]), known)))
        elif detail["type"] == "missing":
            faults.append(Fault(at, MISSING))
        elif detail["type"] in ("unknown_method", "kind", "choice"):
            faults.append(Fault((*at, *context.get("at", [])), detail["msg"], context.get("mend")))
        else:
            lone = detail["type"] == "list_type" and isinstance(detail["input"], str)
            mend = f'write a list: ["{detail["input"]}"]' if lone else None
            faults.append(Fault(at, f"{detail['msg'][0].lower()}{detail['msg'][1:]}, and {detail['input']!r} is given", mend))
    return sorted(faults, key=lambda fault: fault.problem == MISSING)  # a needed key misspelt is told as the unknown key it is


def _keys(model: type[pydantic.BaseModel], at: tuple[str | int, ...]) -> set[str]:
    """The keys of the table at a path inside a model: those of the models its lists, tables and unions hold."""
    models = [model]
    for part in at:
        models = [inner for each in models if part in each.model_fields for inner in _models(each.model_fields[str(part)].annotation)] or models
    return {key for each in models for key in each.model_fields}


def _models(hint: Any) -> Iterator[type[pydantic.BaseModel]]:
    if inspect.isclass(hint) and issubclass(hint, pydantic.BaseModel):
        yield hint
    for inner in typing.get_args(hint):
        yield from _models(inner)


def as_plain(value: Any) -> Any:
    """A recipe value as TOML and JSON can hold it: choices become tables."""
    if isinstance(value, Choice):
        return {"name": value.name, **value.tags, **{k: as_plain(v) for k, v in value.options.items()}}
    if isinstance(value, pydantic.BaseModel):
        return {key: as_plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value


def _outside(kind: str, path: str) -> Callable[..., Any]:
    return _checked(kind, path, outside.load(path))


@cache
def _checked(kind: str, path: str, target: Callable[..., Any]) -> Callable[..., Any]:
    if (init := PACKAGE / kind / "__init__.py").is_file():
        outside.check(path, target, kind, init.read_text())
    try:
        schema(target)
    except Exception as error:  # hints may name anything
        problem = f"the options of '{path}' ({outside.place(target)}) can't be read: {type(error).__name__}: {error}"
        raise RecipeError(problem, mend="each option's type hint must name what its module has") from None
    return target


def _broken(kind: str, file: Path) -> RecipeError:
    """Why a file that is there holds no method."""
    try:
        there = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    except SyntaxError as error:
        return RecipeError(f"{kind}/{file.name} can't be read: line {error.lineno}: {error.msg}", mend=f"put {file} right")
    except (OSError, ValueError) as error:
        return RecipeError(f"{kind}/{file.name} can't be read: {error}", mend=f"put {file} right")
    problem = f"{kind}/{file.name} has no function or class called {file.stem}"
    return RecipeError(problem, mend=f"{neighbours(file.stem, there) or 'it has none'}  ({file})")


@cache
def _symbol(file: Path) -> str | None:
    """The class or function in `file` that bears the file's name, underscores and case aside."""
    if file.name.startswith("_"):
        return None
    wanted = file.stem.replace("_", "").lower()
    try:
        tree = ast.parse(file.read_text())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.replace("_", "").lower() == wanted:
            return node.name
    return None
