"""Kind: a model by its options: `name(vocabulary, *, ...) -> torch.nn.Module`, Batch -> Outputs."""
