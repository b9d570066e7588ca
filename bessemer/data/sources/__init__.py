"""Kind: where text comes from: `name(*, ...) -> Iterator[Document | Skipped]`, the same documents in the same order each time.

A source that can be cut takes `part` before the `*`, a pair (index, of), and yields only its share: the collect stage
then reads the parts side by side. The parts in order are the whole.
"""
