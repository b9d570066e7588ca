"""Kind: what to do about a step that looks wrong: `Name(*, ...)` with `judge(progress, loss, norm) -> Verdict`, state in JSON."""
