"""Kind: where pictures, sounds and their captions come from: `name(*, ...) -> Iterator[Example | Unreadable]`, the same order each time."""
