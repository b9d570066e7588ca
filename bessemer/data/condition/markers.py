"""Tags before a text, which the model also learns to infer."""

from __future__ import annotations

import itertools

import numpy as np

from bessemer.core import rng
from bessemer.core.errors import RecipeError
from bessemer.data.prefixes import Prefixes, by_facts
from bessemer.data.rows import Array
from bessemer.data.tokenizer import Tokenizer
from bessemer.data.tokens import Tokens


def markers(tokenizer: Tokenizer, tokens: Tokens, seed: int, *, facts: list[str] = ["domain"], drop: float = 0.5, learned: bool = True) -> Prefixes:
    """Tags before documents, each left out at random, predicted like any other text (D'souza et al. 2025, "Treasure Hunt").

    Claim: on average 5.7% more wins in open-ended generation, and over 9.1% in rare domains.

    The tag of a fact is `<domain>NAME</domain>`. Since tags are targets as well, a model that is given none writes them itself
    before it goes on, and one that is given some follows them. Which tags a document keeps is drawn once from the seed and its number.

    Args:
        tokenizer: encodes the tags.
        tokens: the store they are for.
        seed: keys what is left out.
        facts: what is tagged: "source", "domain", or what else `tokenize.facts` keeps.
        drop: the chance of each tag to be left out.
        learned: whether tags are targets.

    Raises:
        RecipeError: there is no fact, or the chance is none.
        DataError: the store keeps no such fact.
    """
    if not facts:
        raise RecipeError("there is nothing to tag", key="condition.facts", mend="name source, domain or both")
    if not 0 <= drop < 1:
        raise RecipeError(f"a chance from 0 to below 1 is wanted, and {drop} is given", key="condition.drop")
    kept = rng.numpy_generator(seed, "markers").random((len(tokens.lengths), len(facts))) >= drop
    ids: list[Array] = []
    which = np.zeros(len(tokens.lengths), dtype=np.int64)
    for chosen in itertools.product((False, True), repeat=len(facts)):
        told = [name for name, keep in zip(facts, chosen, strict=True) if keep]
        mine = (kept == np.array(chosen)).all(axis=1)
        found, of = by_facts(tokens, told, lambda facts: tokenizer.encode("".join(f"<{name}>{value}</{name}>" for name, value in facts.items())))
        which[mine] = of[mine] + len(ids)
        ids += found
    return Prefixes(ids, which, learned=learned)
