"""The matrices in a weight, each with its own corner of the weight's state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bessemer.core import products, shards
from bessemer.optim._blocks import Packed, States, held, zeros

PIECE = 1 << 19
"""Numbers of a matrix that one chain of products works on."""


class Matrix:
    """One matrix of a weight: [outputs, inputs], with its gradient and its own corner of the weight's state."""

    def __init__(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], number: int | None) -> None:
        self.weight, self.gradient, self.state = weight, gradient, state
        self.suffix = "" if number is None else f".{number}"
        self.tall = weight.shape[0] >= weight.shape[1]

    def __contains__(self, key: str) -> bool:
        return key + self.suffix in self.state

    def __getitem__(self, key: str) -> Any:
        return self.state[key + self.suffix]

    def get(self, key: str) -> Any:
        """The state of this name, or None."""
        return self.state.get(key + self.suffix)

    def __setitem__(self, key: str, value: Any) -> None:
        self.state[key + self.suffix] = value

    def moment(self, key: str, like: Tensor, states: States, signed: bool = True) -> Tensor | Packed:
        """A state of the shape of `like`, made of zeros where there is none."""
        name = key + self.suffix
        if name not in self.state and f"{name}.codes" not in self.state:
            zeros(self.state, name, like, states)
        return held(self.state, name, signed)

    def spans(self) -> list[slice]:
        """The longer side in pieces that chains of products work on, each within a core's cache; in one where torch multiplies."""
        longer, shorter = max(self.weight.shape), min(self.weight.shape)
        count = max(1, round(longer * shorter / PIECE)) if products.fast() else 1
        size = -(-longer // (32 * count)) * 32
        return [slice(start, min(start + size, longer)) for start in range(0, longer, size)] if size < longer else [slice(None)]

    def piece(self, of: Tensor, span: slice) -> Tensor:
        """A span of the longer side of something shaped as the matrix is, or at low rank on the other side."""
        if span.stop is None:
            return of
        return of[span] if self.tall else of[:, span]


def matrices(group: dict[str, Any], members: Iterable[Tensor], state: Any) -> Iterator[tuple[Tensor, list[Matrix]]]:
    """Each member of two or more dimensions with the matrices in it (`shards.matrices`)."""
    parts = parts_of(group)
    for member in members:
        if member.ndim < 2:
            continue
        weights, gradients = (shards.matrices(value, parts[id(member)]) for value in (member.detach(), laid_flat(member)))
        numbers = range(len(weights)) if len(weights) > 1 else [None]
        mine = state[member]
        yield member, [Matrix(w, g, mine, n) for w, g, n in zip(weights, gradients, numbers, strict=True)]


def laid_flat(member: Tensor) -> Tensor:
    """A parameter's gradient as `shards.matrices` can view it: a kernel's may lie in another order than its weight."""
    gradient: Tensor = member.grad  # type: ignore[assignment]
    return gradient if gradient.ndim < 4 else gradient.contiguous()


def parts_of(group: dict[str, Any]) -> dict[int, Sequence[int]]:
    """Rows of the matrices stacked in each parameter of a group, by its identity; () for none."""
    return dict(zip(map(id, group["params"]), group.get("parts") or [()] * len(group["params"]), strict=True))


def shapes(shape: Sequence[int], parts: Sequence[int]) -> list[tuple[int, int]]:
    """The matrices in a weight of this shape."""
    if len(shape) == 3:
        return [(rows, shape[2]) for _ in range(shape[0]) for rows in parts or [shape[1]]]
    inputs = 1
    for size in shape[1:]:
        inputs *= size
    return [(rows, inputs) for rows in parts or [shape[0]]]
