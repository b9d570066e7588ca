"""A task: what one part of the training learns from, and how."""

from __future__ import annotations

from typing import Annotated

import pydantic

from bessemer.core.registry import Auto, Choice, Kind


class Task(pydantic.BaseModel):
    """One entry of a recipe's `task` list.

    Attributes:
        name: what reports call it.
        examples: the stage whose examples it reads; None: it reads the token store, or the only example store there is if its
            objective learns from examples.
        domains: the token store's domains it reads, or all of them.
        mix: how those domains share its batches; None: as the stage's `mix` says.
        pack: how documents become rows.
        condition: what is told before each document's text; None: nothing.
        adapter: how inputs other than tokens enter the trunk.
        objective: what is learned from them.
        weight: its factor in the loss.
        share: its share of each global batch's rows, relative to the other tasks'.
        start, stop: the span of training in which it is on, as fractions of the run.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    name: str = "text"
    examples: str | None = None
    domains: list[str] | Auto = "auto"
    mix: Annotated[Choice, Kind("data/mix")] | None = None
    pack: Annotated[Choice, Kind("data/pack")] = pydantic.Field(default="best_fit", validate_default=True)
    condition: Annotated[Choice, Kind("data/condition")] | None = None
    adapter: Annotated[Choice, Kind("models/adapters")] | None = None
    objective: Annotated[Choice, Kind("objectives")] = pydantic.Field(default="next_token", validate_default=True)
    weight: float = pydantic.Field(default=1.0, ge=0.0)
    share: float = pydantic.Field(default=1.0, gt=0.0)
    start: float = pydantic.Field(default=0.0, ge=0.0, lt=1.0)
    stop: float = pydantic.Field(default=1.0, gt=0.0, le=1.0)
