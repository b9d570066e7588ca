"""Shares by size, flattened."""

from __future__ import annotations

from collections.abc import Mapping

from bessemer.core.errors import RecipeError


def temperature(sizes: Mapping[str, int], *, temperature: float = 2.0) -> dict[str, float]:
    """Shares in proportion to size ** (1 / temperature), so small sources come round more often (Conneau and Lample 2019).

    Args:
        sizes: name of each source or domain -> its tokens.
        temperature: 1 keeps the sizes' shares; the higher, the nearer to equal ones.

    Raises:
        RecipeError: the temperature is not above 0.
    """
    if not 0 < temperature < float("inf"):
        raise RecipeError(f"a temperature is a number above 0, and {temperature} is given", key="mix.temperature")
    largest = max(sizes.values())
    raised = {name: (size / largest) ** (1 / temperature) if size else 0.0 for name, size in sizes.items()}
    total = sum(raised.values())
    return {name: value / total for name, value in raised.items()}
