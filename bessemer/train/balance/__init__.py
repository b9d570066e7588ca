"""Kind: how the gradients of several tasks become one: `Name(*, ...)` with `__call__(tasks: list[Gradient]) -> list[Tensor | None]`, state in JSON."""
