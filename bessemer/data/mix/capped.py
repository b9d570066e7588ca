"""Shares by another method, with an end to repeating."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice, Kind
from bessemer.data.mix._online import Online, View, normalised


class Capped:
    """Another mix's shares until a source was gone through so many times; then it drops out (Muennighoff et al. 2023, arXiv:2305.16264).

    Claim: up to four epochs of the same text are almost as good as new text, and beyond sixteen more are worth nothing.

    A source ends within the global batch in which it reaches its cap; the others share what it leaves, in proportion. When all
    have reached theirs, training goes on with the other mix's shares, since something must be read.

    Args:
        sizes: name of each source or domain -> its tokens.
        base: the mix that is capped.
        epochs: how many times each source may be gone through.
        caps: source -> another number for it alone.

    Raises:
        RecipeError: a cap is not above 0 or names no source.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        base: Annotated[Choice, Kind("data/mix")] = "proportional",  # type: ignore[assignment]
        epochs: float = 4.0,
        caps: dict[str, float | int] = {},
    ) -> None:
        for name in caps:
            if name not in sizes:
                raise RecipeError(f"there is no source or domain '{name}' in the tokens", key=f"mix.caps.{name}")
        self.caps = {name: float(caps.get(name, epochs)) for name in sizes}
        for name, cap in self.caps.items():
            if not cap > 0:
                raise RecipeError(f"a source may be gone through a number of times above 0, and {cap} is given", key=f"mix.caps.{name}")
        made = base(sizes)
        self.base: Online | None = made if isinstance(made, Online) else None
        self.wanted: dict[str, float] = made.shares if isinstance(made, Online) else made
        self.shares = dict(self.wanted)

    def look(self, view: View) -> dict[str, float] | None:
        changed = self.base.look(view) if self.base else None
        self.wanted = self.wanted if changed is None else changed
        left = {name: share if view.epochs.get(name, 0.0) < self.caps[name] else 0.0 for name, share in self.wanted.items()}
        shares = normalised(left) if any(left.values()) else dict(self.wanted)
        if shares == self.shares:
            return None
        self.shares = shares
        return shares

    def state(self) -> dict[str, Any]:
        return {"wanted": self.wanted, "shares": self.shares, "base": self.base.state() if self.base else None}

    def restore(self, state: dict[str, Any]) -> None:
        self.wanted, self.shares = dict(state["wanted"]), dict(state["shares"])
        if self.base:
            self.base.restore(state["base"])
