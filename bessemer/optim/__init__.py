"""Kind: gradients to update: `Name(params, *, ...)`, a torch.optim.Optimizer over parameter groups."""
