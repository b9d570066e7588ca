"""What is compared, for how much, tuned how: the command's words made into values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bessemer.core import recipe as recipes
from bessemer.core.errors import BessemerError

SPENT = ("tokens", "steps", "seconds", "flops")
"""What a training may spend."""
LEAST = {"tokens": 1, "steps": 1, "seconds": 1.0, "flops": 1.0, "memory": 1.0}
"""Less than this is no budget, whatever is trained; a second, since a training's first step, which compiles, isn't timed."""
SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}


@dataclass(frozen=True)
class Budget:
    """What each variant may take.

    Attributes:
        text: as it was written; None: as the recipe says.
        unit: what its trainings spend, None for as the recipe says.
        amount: of that, for a whole training.
        memory: bytes a training may hold at its most; None for any.
    """

    text: str | None = None
    unit: str | None = None
    amount: float = 0.0
    memory: float | None = None

    def overrides(self, train: str, known: set[str], share: float) -> dict[str, Any]:
        """Recipe keys that give the stage `train` this share of the budget, and nothing else to end it.

        Raises:
            BessemerError: the share is less than a step.
        """
        if self.unit is None:
            return {}
        amount = self.amount * share
        whole = round(amount) if self.unit in ("tokens", "steps") else amount
        if whole <= 0:
            raise self._short(f"{self.unit}={math.ceil(1.0 / share)}")
        return {f"{train}.{unit}": None for unit in SPENT if unit in known} | {f"{train}.{self.unit}": whole}

    def enough(self, tokens: int | None, batch: int) -> None:
        """Refuses a training of fewer tokens than a global batch has.

        Raises:
            BessemerError: it would spend more than its share.
        """
        if self.unit == "tokens" and tokens is not None and tokens < batch:
            raise self._short(f"tokens={math.ceil(batch * self.amount / tokens)}, or a smaller train.batch")

    def _short(self, enough: str) -> BessemerError:
        problem = f"'{self.text}' leaves a training, or a trial of tuning, less than one step"
        return BessemerError(problem, key="--budget", mend=f"give at least {enough}")


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
            raise BessemerError(f"'{text}' names a value twice", key="--vary", mend="leave one of them out")
    return out


def parse_tune(texts: list[str]) -> dict[str, int | list[Any]]:
    """`["lr=3", "optim.momentum=0.9,0.95"]` -> key -> how many values around its own, or the values.

    Raises:
        BessemerError: neither is given, or a key twice.
    """
    out: dict[str, int | list[Any]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        found = [recipes.parse_value(value.strip()) for value in _split(values)] if key and values else []
        single = found[0] if len(found) == 1 else None
        if key in out or not found or (single is not None and (not isinstance(single, int) or isinstance(single, bool) or single < 2)):
            raise BessemerError(
                f"'{text}' doesn't say what to tune", key="--tune", mend="write lr=3 for three values around its own, or lr=0.001,0.003"
            )
        out[key] = single if single is not None else found
    return out


def parse_budget(text: str | None) -> Budget:
    """`tokens=2M`, `seconds=60`, `steps=500`, `flops=1P`, `memory=2G`, or one of the first four and memory: `tokens=2M,memory=2G`.

    Raises:
        BessemerError: another word, no finite number of one or more, or two things to spend.
    """
    if text is None:
        return Budget()
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition("=")
        value = _amount(amount)
        if name not in LEAST or name in found or not LEAST[name] <= value < float("inf"):
            raise BessemerError(f"'{text}' is no budget", key="--budget", mend="write tokens=2M, steps=500, seconds=60, flops=1P or memory=2G")
        if name == "steps" and value % 1:
            raise BessemerError(f"'{text}' is no number of steps", key="--budget", mend=f"write steps={math.ceil(value)}")
        found[name] = value
    memory = found.pop("memory", None)
    if len(found) > 1:
        raise BessemerError(f"'{text}' names {len(found)} things to spend", key="--budget", mend=f"choose one of {', '.join(found)}")
    unit, value = next(iter(found.items()), (None, 0.0))
    return Budget(text, unit, value if unit in ("seconds", "flops") else int(value), memory)


def _amount(text: str) -> float:
    factor = SUFFIXES.get(text[-1:], 1)
    try:
        return float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        return 0.0


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
