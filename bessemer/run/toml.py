"""Plain values as TOML, so that a resolved recipe can be read, kept and run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WIDTH = 110


def recipe(plain: Mapping[str, Any]) -> str:
    """A resolved recipe (`Recipe.plain()`) as a recipe file.

    Options that are None are left out: TOML has no such value, and leaving an option out means its default.
    """
    lines = [f"{key} = {value(plain[key])}" for key in ("name", "about", "seed") if plain.get(key) not in (None, "")]
    for stage in plain["stage"]:
        lines += ["", "[[stage]]"]
        for key, item in stage.items():
            if item is not None and not (key == "inputs" and not item):
                lines.append(f"{key} = {value(item)}")
    return "\n".join(lines) + "\n"


def value(item: Any, indent: str = "") -> str:
    """One value; long lists are broken over lines, which TOML allows inside brackets."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, int):
        return str(item)
    if isinstance(item, float):
        return repr(item)  # inf and nan are spelt alike in both
    if isinstance(item, Mapping):
        inner = ", ".join(f"{_key(str(k))} = {value(v)}" for k, v in item.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(item, list | tuple):
        parts = [value(each, indent + "  ") for each in item if each is not None]
        text = f"[{', '.join(parts)}]"
        if len(text) <= WIDTH:
            return text
        return "[\n" + "".join(f"{indent}  {part},\n" for part in parts) + indent + "]"
    return _quoted(str(item))


def _key(name: str) -> str:
    bare = name and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if bare else _quoted(name)


def _quoted(text: str) -> str:
    """JSON's escapes are TOML's, but for one character that TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
