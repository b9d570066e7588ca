"""Kind: one measure of a model: `name(subject, *, ...) -> dict[str, Figure]`, names to values with their intervals.

`subject` is an `evaluate.subject.Subject`: the model, its tokenizer, the token store if there is one, the seed. A
task leaves the model as it found it, draws only from keyed randomness, and sums before it divides.
"""
