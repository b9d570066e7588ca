"""Numbers with a range, for methods' signatures: a recipe with a value outside it is refused before anything is built.

None of them may be infinite or no number. A range that only one method has is written in its signature.
"""

from typing import Annotated

from pydantic import Field

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A rate, a decay of weights, a length of warm-up: 0 switches it off."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""What is divided by, or does nothing at 0."""

Share = Annotated[float, Field(ge=0, le=1)]
"""Of a whole: none to all."""

Part = Annotated[float, Field(gt=0, le=1)]
"""Of a whole: some to all."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of a running mean is kept at each step; with 1 it would never take anything in."""

Betas = Annotated[list[Decay], Field(min_length=2, max_length=2)]
"""Two decays, of the gradient's running mean and of its square's."""

Growth = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""By how much something may grow."""

Count = Annotated[int, Field(ge=1)]
"""How many, how often, how long: at least one."""

Whole = Annotated[int, Field(ge=0)]
"""A number of steps or things that may be none."""
