"""Sums to be learned, with an exact verifier."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy

from bessemer.core import rng
from bessemer.core.errors import DataError
from bessemer.data.document import Document, Skipped
from bessemer.data.sources._files import Part

Operation = Literal["+", "-", "*"]
LINE = re.compile(r"(-?\d+(?: [-+*] -?\d+)+) = (-?\d+)")


def arithmetic(
    part: Part = (0, 1),
    *,
    documents: int,
    lines: int = 8,
    digits: int = 3,
    terms: int = 2,
    operations: list[Operation] = ["+", "-"],
    seed: int = 0,
    domain: str = "arithmetic",
) -> Iterator[Document | Skipped]:
    """Lines such as "12 + 7 = 19", each a function of (seed, its number) and true; `verify` checks any text of this form.

    Args:
        part: (index, of): which share of the documents to make.
        documents: how many.
        lines: sums in a document.
        digits: the most digits of a number; lengths are drawn evenly from 1 to this.
        terms: the most numbers on the left, at least 2; drawn evenly.
        operations: which of + - *; * binds tighter.
        seed: another seed gives other sums.
        domain: the domain of its documents.
    """
    if min(documents, lines, digits, terms - 1, len(operations)) < 1 or digits > 18:
        raise DataError("documents, lines and operations must be at least 1, digits 1 to 18 and terms at least 2", key="arithmetic")
    index, of = part
    for number in range(index * documents // of, (index + 1) * documents // of):
        draw = rng.numpy_generator(seed, "arithmetic", number)
        yield Document("".join(_line(draw, digits, terms, operations) for _ in range(lines)), "arithmetic", domain, str(number))


def _line(draw: numpy.random.Generator, digits: int, terms: int, operations: list[Operation]) -> str:
    count = int(draw.integers(2, terms + 1))
    numbers = [str(draw.integers(0, 10 ** int(draw.integers(1, digits + 1)))) for _ in range(count)]
    left = numbers[0]
    for number in numbers[1:]:
        left += f" {operations[int(draw.integers(len(operations)))]} {number}"
    return f"{left} = {value(left)}\n"


def value(expression: str) -> int:
    """What numbers joined by + - * come to, * first, exactly."""
    first, *rest = expression.split(" ")
    total, product, sign = 0, int(first), 1
    for operation, number in zip(rest[::2], rest[1::2], strict=True):
        if operation == "*":
            product *= int(number)
        else:
            total, product, sign = total + sign * product, int(number), 1 if operation == "+" else -1
    return total + sign * product


def verify(text: str) -> bool:
    """Whether every line is a well-formed sum that is true, and there is at least one."""
    lines = text.strip("\n").split("\n")
    found = [LINE.fullmatch(line.strip()) for line in lines]
    return all(match is not None and value(match[1]) == int(match[2]) for match in found)
