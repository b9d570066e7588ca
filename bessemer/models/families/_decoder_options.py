"""How the decoder's options follow from each other, which of them contradict, and what attention costs."""

from __future__ import annotations

from typing import Any

from bessemer.core.errors import RecipeError
from bessemer.models.layers import experts
from bessemer.models.layers.rope import scaling_problem

HEAD_SIZE = 64
MULTIPLE = 64
LENGTH = 2048
"""Positions where nothing says how many: training fills in its rows' length."""


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The options with every "auto" worked out: plain values, enough to build the same model again."""
    o = dict(given)
    _at_least("depth", o["depth"], 1)
    if o["width"] == "auto":
        o["width"] = o["heads"] * o["head_size"] if "auto" not in (o["heads"], o["head_size"]) else max(2 * HEAD_SIZE, HEAD_SIZE * o["depth"])
    if o["head_size"] == "auto":
        o["head_size"] = HEAD_SIZE if o["heads"] == "auto" else o["width"] // o["heads"]
    if o["heads"] == "auto":
        o["heads"] = max(1, o["width"] // o["head_size"])
    if o["kv_heads"] == "auto":
        o["kv_heads"] = _kv_heads(o["heads"])
    if o["length"] == "auto":
        o["length"] = LENGTH
    if o["ffn"] == "auto":
        factor = 8 / 3 if o["mlp"] == "swiglu" else 4
        o["ffn"] = max(MULTIPLE, round(o["width"] * factor / MULTIPLE) * MULTIPLE)
    o["experts"] = experts.resolve(o["experts"], o["ffn"])
    return o


def _kv_heads(heads: int) -> int:
    """All of them up to 16, where the cache is small anyway; beyond that the fewest that at most four queries share."""
    if heads <= 16:
        return heads
    return next(n for n in range(1, heads + 1) if heads % n == 0 and heads // n <= 4)


def check(vocabulary: int, o: dict[str, Any]) -> None:
    """Refuses options that contradict each other.

    Raises:
        RecipeError: naming the option, its value and what would do.
    """
    _at_least("vocabulary", vocabulary, 1)
    for name in ("width", "heads", "kv_heads", "head_size", "ffn", "length"):
        _at_least(name, o[name], 1)
    _at_least("ahead", o["ahead"], 0)
    for name in ("norm_eps", "theta"):
        if not o[name] > 0:
            raise RecipeError(f"a positive number is wanted, and {o[name]!r} is given", key=f"model.{name}")
    if o["heads"] % o["kv_heads"]:
        raise RecipeError(
            f"{o['kv_heads']} key heads can't be shared evenly by {o['heads']} query heads",
            key="model.kv_heads",
            mend=f"choose a divisor of {o['heads']}",
        )
    if o["positions"] == "rope" and o["head_size"] % 2:
        raise RecipeError(f"rotary positions need heads of even size, and it is {o['head_size']}", key="model.head_size")
    if o["window"] is not None:
        _at_least("window", o["window"], 1)
    for layer in o["window_layers"] or []:
        if not 0 <= layer < o["depth"]:
            raise RecipeError(
                f"there is no layer {layer} among {o['depth']}", key="model.window_layers", mend=f"layers count from 0 to {o['depth'] - 1}"
            )
    if o["parallel"] and o["norm_place"] != "pre":
        raise RecipeError(f"parallel blocks have one norm before both parts, and norm_place is '{o['norm_place']}'", key="model.parallel")
    if o["experts"] is not None:
        wrong = experts.problem(o["experts"], o["depth"])
        if wrong:
            raise RecipeError(wrong[1], key=f"model.experts.{wrong[0]}")
        if o["mlp_bias"]:
            raise RecipeError("experts have no biases", key="model.mlp_bias", mend="leave it out, or the experts")
    if o["modalities"] and o["experts"] is not None:
        clash = "columns of other modalities have feed-forward parts of their own, and experts are for all columns"
        raise RecipeError(clash, key="model.modalities", mend="leave one of the two out")
    if len(set(o["modalities"])) < len(o["modalities"]):
        raise RecipeError(f"{o['modalities']} names one twice", key="model.modalities")
    if o["rope_scaling"] is not None:
        if o["positions"] != "rope":
            raise RecipeError(f"there is nothing to scale with positions = '{o['positions']}'", key="model.rope_scaling")
        problem = scaling_problem(o["rope_scaling"], o["head_size"])
        if problem:
            raise RecipeError(problem[1], key=f"model.rope_scaling.{problem[0]}")


def attention_flops(o: dict[str, Any], windowed: list[bool], length: int) -> float:
    """Training operations per token of scores and mixing, over all layers; see Decoder.flops_per_token."""
    whole = (length + 1) / 2
    window = min(o["window"] or length, length)
    near = (window * (window + 1) / 2 + (length - window) * window) / length
    return 12.0 * o["heads"] * o["head_size"] * sum(near if each else whole for each in windowed)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise RecipeError(f"{value} is too small; it must be at least {least}", key=f"model.{name}")
