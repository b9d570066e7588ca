"""Kind: one cleaning rule: `name(document, *, ...) -> Document | str`, the changed document or the reason it is dropped."""
