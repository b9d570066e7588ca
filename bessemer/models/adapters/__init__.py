"""Kind: how inputs other than tokens enter the trunk: `Name(width, *, ...)`, an `Adapter` (see `_adapter.py`) that cuts raw values into vectors and lays these into their columns."""
