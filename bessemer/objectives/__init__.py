"""Kind: what is learned: `name(outputs, batch, *, ...) -> Terms`; sums only, the engine divides."""
