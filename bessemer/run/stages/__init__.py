"""Kind: one stage of a recipe: `name(work, artifacts..., *, ...) -> Artifact class`."""
