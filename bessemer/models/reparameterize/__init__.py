"""Kind: what the weights of linear layers are made of while they train: `name(model, seed, *, ...) -> model`; see models/reparameterized.py."""
