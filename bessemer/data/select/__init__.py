"""Kind: which documents say the same: `name(texts, *, ...) -> uint64 [keys, documents]`.

Documents that share a key in any row are copies of one another; 0 is no key. A document's keys depend on its text alone.
"""
