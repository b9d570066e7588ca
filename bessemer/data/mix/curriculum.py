"""Other shares in other parts of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from bessemer.core.errors import RecipeError
from bessemer.core.registry import Choice, Kind
from bessemer.data.mix._online import Online, View


class Span(pydantic.BaseModel):
    """One part of training.

    Attributes:
        until: the fraction of the run at which it ends.
        mix: the shares in it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    until: float = 1.0
    mix: Annotated[Choice, Kind("data/mix")]


class Curriculum:
    """A mix for each part of training, one after the other (Bengio et al. 2009, "Curriculum Learning").

    Args:
        sizes: name of each source or domain -> its tokens.
        spans: `{until = 0.6, mix = "proportional"}` and so on, with rising fractions of the run; the last one lasts to the end.

    Raises:
        RecipeError: there is no span, the fractions don't rise, or a mix within changes by itself.
    """

    def __init__(self, sizes: Mapping[str, int], *, spans: list[Span]) -> None:
        ends = [span.until for span in spans]
        if not spans or ends != sorted(set(ends)) or not 0 < ends[0] <= ends[-1] <= 1:
            problem = f"a curriculum's spans end at rising fractions of the run from above 0 up to 1, and {ends} is given"
            raise RecipeError(problem, key="mix.spans", mend="for example until = 0.8 in the first, and until = 1.0 in the second")
        self.ends, self.span = ends, 0
        self.tables: list[dict[str, float]] = []
        for number, span in enumerate(spans):
            made = span.mix(sizes)
            if isinstance(made, Online):
                raise RecipeError(f"'{span.mix.name}' changes by itself, and a span's shares are fixed", key=f"mix.spans[{number}].mix")
            self.tables.append(made)
        self.shares = self.tables[0]

    def look(self, view: View) -> dict[str, float] | None:
        while self.span < len(self.ends) - 1 and view.progress.fraction >= self.ends[self.span]:
            self.span += 1
        if self.tables[self.span] == self.shares:
            return None
        self.shares = self.tables[self.span]
        return self.shares

    def state(self) -> dict[str, Any]:
        return {"span": self.span}

    def restore(self, state: dict[str, Any]) -> None:
        self.span = int(state["span"])
        self.shares = self.tables[self.span]
