"""Kind: a number over training, as a factor of its base value: `name(progress, *, ...) -> float`, pure."""
