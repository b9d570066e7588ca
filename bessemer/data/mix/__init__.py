"""Kind: how sources share the batches: `name(sizes, *, ...) -> shares`, deterministic and summing to one, or an object whose shares change (_online.py)."""
