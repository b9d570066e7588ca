"""Kind: how documents become rows: `name(lengths, length, *, ...) -> Rows`."""
