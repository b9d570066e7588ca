"""Kind: what acts around the optimizers' update: `Name(params, model, *, ...)` with `begin(progress)`, `prepare(probe)`, `step()`, and `averaged()` if it averages."""
