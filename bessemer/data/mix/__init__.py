"""Kind: how sources share the batches: `name(sizes, *, ...) -> shares`, deterministic and summing to one."""
