"""Shares as the recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping

from bessemer.core.errors import RecipeError, neighbours


def fixed(sizes: Mapping[str, int], *, weights: dict[str, float | int] = {}) -> dict[str, float]:
    """Shares in proportion to given weights; what is not named is left out. Without weights all that has any text shares equally.

    Args:
        sizes: name of each source or domain -> its tokens.
        weights: name -> weight, of any scale.

    Raises:
        RecipeError: a name is unknown, a weight negative or not finite, or all are zero.
    """
    for name, weight in weights.items():
        if name not in sizes:
            raise RecipeError(f"there is no source or domain '{name}' in the tokens", key=f"mix.weights.{name}", mend=neighbours(name, sizes))
        if not 0 <= weight < float("inf"):
            raise RecipeError(f"a weight is a number from 0 up, and {weight} is given", key=f"mix.weights.{name}")
    weights = weights or {name: float(size > 0) for name, size in sizes.items()}
    total = sum(weights.values())
    if total <= 0:
        raise RecipeError("the weights sum to zero", key="mix.weights", mend="give at least one of them more than 0")
    return {name: weights.get(name, 0) / total for name in sizes}
