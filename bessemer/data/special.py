"""The special tokens that objectives ask for, and how a tokenizer is told to keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from bessemer.core.errors import RecipeError

MASK = "<|mask|>"
REGULAR, SEQUENTIAL, EXTREME = "<|regular|>", "<|sequential|>", "<|extreme|>"
BLANKS = tuple(f"<|blank_{number}|>" for number in range(32))
UNITS = tuple(f"<|unit_{number}|>" for number in range(64))
SPEECH, TEXT = "<|speech|>", "<|text|>"
Reserve = Literal["mask", "modes", "blanks", "units"]
SETS: dict[str, tuple[str, ...]] = {
    "mask": (MASK,),
    "modes": (REGULAR, SEQUENTIAL, EXTREME),
    "blanks": BLANKS,
    "units": (SPEECH, TEXT, *UNITS),
}
"""What `train_tokenizer.reserve` may name -> the tokens it keeps."""
_ELSEWHERE = {
    MASK: ("[MASK]", "<mask>", "<|mdm_mask|>"),
    **{name: (f"<extra_id_{number}>", f"<|reserved_special_token_{number}|>") for number, name in enumerate(BLANKS)},
}
"""What other people's tokenizers call the same."""


class Words(Protocol):
    """What objectives ask of a tokenizer."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int]: ...

    def bytes_of(self, id: int) -> bytes: ...


def find(words: Words, wanted: str, key: str) -> int:
    """The id of a special token, by its own name or by what other tokenizers call it.

    Args:
        key: the recipe key of what asks for it.

    Raises:
        RecipeError: the tokenizer has none.
    """
    for name in (wanted, *_ELSEWHERE.get(wanted, ())):
        if name in words.special_ids:
            return words.special_ids[name]
    kept = next((of for of, tokens in SETS.items() if wanted in tokens), None)
    mend = f'train the tokenizer with reserve = ["{kept}"]' if kept else "name a special token that it has, or train it with this one in specials"
    raise RecipeError(f"the tokenizer has no special token '{wanted}'", key=key, mend=mend)


def all_of(words: Words, wanted: tuple[str, ...], key: str, least: int = 1) -> list[int]:
    """The ids of as many tokens of a numbered family as the tokenizer has, from the first on.

    Raises:
        RecipeError: it has fewer than `least`.
    """
    found = []
    for name in wanted:
        try:
            found.append(find(words, name, key))
        except RecipeError:
            if len(found) < least:
                raise
            break
    return found
