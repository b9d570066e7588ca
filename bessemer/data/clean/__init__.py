"""Kind: one cleaning rule: `name(document, *, ...) -> Document | str`, the document as it should be or the reason it is removed.

A rule looks at one document alone. Reasons are few fixed phrases, since they are counted. A rule made for prose has the
option `leave`, the domains it passes over (`["code"]` by default).
"""
