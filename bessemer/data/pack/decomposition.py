"""Documents cut into powers of two, each row of one size only."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bessemer.core.errors import RecipeError
from bessemer.data.rows import Array, Rows, spread


def decomposition(
    lengths: Array,
    length: int,
    *,
    curriculum: Literal["uniform", "grow", "shrink"] = "grow",
    cycles: int = 8,
    skew: float = 2.0,
    together: int = 4,
    shortest: int = 1,
) -> Rows:
    """Cuts every document into power-of-two pieces, fills each row with pieces of one size, and orders rows by length (Pouransari et al. 2024).

    Claim: with the length curriculum a target accuracy is reached three times faster than by concatenating and cutting.

    A document's pieces are the binary digits of its length, the largest first, none longer than a row; so no piece crosses
    documents, and every step reads as many tokens as any other, in more or fewer sequences: a micro-batch's rows are folded to its
    longest piece before they are computed (data/fold.py), so attention costs what the pieces' lengths ask for. Rows are ordered within an epoch by the
    curriculum: in each of `cycles` rounds, the odds of each doubling of the size grow from 1 / skew to skew against the size below it.

    Args:
        lengths: int64 [documents], tokens of each.
        length: tokens of a row; where that is no power of two, what is beyond the last one is padding in the longest pieces' rows.
        curriculum: "grow" goes from short to long in each cycle, "shrink" from long to short, "uniform" mixes all sizes evenly.
        cycles: rounds of the curriculum in an epoch.
        skew: how strongly the odds lean at a cycle's ends.
        together: rows of one size that come in a row.
        shortest: pieces smaller than this are left out, as the paper does below 256; by default no token is lost.

    Raises:
        RecipeError: an option is out of its range.
    """
    for name, value, least in (("cycles", cycles, 1), ("together", together, 1), ("skew", skew, 1.0), ("shortest", shortest, 1)):
        if value < least:
            raise RecipeError(f"must be at least {least}, and is {value}", key=f"pack.{name}")
    document, start, size = _digits(np.asarray(lengths, dtype=np.int64), 1 << (length.bit_length() - 1))
    kept = size >= shortest
    document, start, size = document[kept], start[kept], size[kept]
    row = np.empty(len(size), dtype=np.int64)
    levels: list[int] = []
    for each in sorted(set(size.tolist())):
        mine = np.flatnonzero(size == each)
        row[mine] = len(levels) + np.arange(len(mine)) // (length // each)
        levels += [each.bit_length() - 1] * (-(-len(mine) // (length // each)))
    made = Rows.of(row, document, start, size, length)
    level = np.array(levels, dtype=np.int64)
    lean = {"uniform": 1.0, "grow": skew, "shrink": 1.0 / skew}[curriculum]
    return Rows(made.offsets, made.document, made.start, made.size, length, True, level, _turns(level, cycles, lean, together))


def _digits(lengths: Array, length: int) -> tuple[Array, Array, Array]:
    """(document, start, size) of every piece, in order."""
    whole, rest = np.divmod(lengths, length)
    sizes = [np.full(int(whole.sum()), length, dtype=np.int64)]
    documents = [np.repeat(np.arange(len(lengths)), whole)]
    starts = [spread(np.zeros_like(whole), whole) * length]
    bit = length >> 1
    while bit:
        has = np.flatnonzero(rest & bit)
        documents.append(has)
        starts.append(whole[has] * length + (rest[has] & ~(2 * bit - 1)))
        sizes.append(np.full(len(has), bit, dtype=np.int64))
        bit >>= 1
    document, start, size = np.concatenate(documents), np.concatenate(starts), np.concatenate(sizes)
    order = np.lexsort((start, document))
    return document[order], start[order], size[order]


def _turns(level: Array, cycles: int, lean: float, together: int) -> Array:
    """int64 [rows]: the level of each place of an epoch.

    Blocks of one level get times in [0, cycles): even ones over the cycles, and within a cycle by quantiles of a density
    proportional to exp(2 ln(lean) x rank x time), the rank of a level being its number counted from the middle one.
    """
    found, counts = np.unique(level, return_counts=True)
    times, owners, sizes = [], [], []
    for number, (each, count) in enumerate(zip(found.tolist(), counts.tolist(), strict=True)):
        blocks = -(-count // together)
        even = (np.arange(blocks) + 0.5) / blocks * cycles
        cycle, within = np.floor(even), even - np.floor(even)
        tilt = 2.0 * np.log(lean) * (number - (len(found) - 1) / 2)
        times.append(cycle + (within if abs(tilt) < 1e-9 else np.log1p(within * np.expm1(tilt)) / tilt))
        owners.append(np.full(blocks, each))
        sizes.append(np.minimum(together, count - np.arange(blocks) * together))
    order = np.argsort(np.concatenate([np.zeros(0), *times]), kind="stable")
    return np.repeat(np.concatenate([np.zeros(0, dtype=np.int64), *owners])[order], np.concatenate([np.zeros(0, dtype=np.int64), *sizes])[order])
