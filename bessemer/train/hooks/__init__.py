"""Kind: what looks on between steps: `Name(run, *, ...)` with `due(report) -> bool`, `__call__(report)` and `close()`."""
