"""Kind: what is told before a document's text: `name(tokenizer, tokens, seed, *, ...) -> Prefixes`."""
