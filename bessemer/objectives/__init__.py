"""Kind: what is learned: `Name(*, ...)`, an `Objective` (see `_objective.py`): (outputs, batch) -> Terms; sums only, the engine divides."""
