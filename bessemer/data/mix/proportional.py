"""Shares by size."""

from __future__ import annotations

from collections.abc import Mapping


def proportional(sizes: Mapping[str, int]) -> dict[str, float]:
    """Each source's share is its share of all tokens, so all come round at the same time.

    Args:
        sizes: name of each source or domain -> its tokens.
    """
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
