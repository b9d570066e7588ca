"""Updates that read and write each number once: `_kernels.c` on float32 tensors of a processor. Every function says whether it did its work."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from bessemer.core.products import Each, Scratch
from bessemer.optim import _native
from bessemer.optim._blocks import Packed


def elementwise(name: str, columns: Sequence[Sequence[Tensor | Packed]], numbers: Sequence[float]) -> bool:
    """Runs one of the elementwise kernels over matching tensors, in place."""
    library = _reaching(*chain.from_iterable(columns))
    if library is None:
        return False
    _run(getattr(library, name), columns, (ctypes.c_float * len(numbers))(*numbers))
    return True


def lamb(columns: Sequence[Sequence[Tensor]], numbers: Sequence[float]) -> None:
    """LAMB on matrices that the kernels reach, and their gradients and moments."""
    room = sum(-(-matrix.numel() // SPAN) for matrix in columns[0])
    sums = (ctypes.c_double * (2 * room))()
    _run(_native.library().lamb, columns, (ctypes.c_float * len(numbers))(*numbers), sums)  # type: ignore[union-attr]


def directing(slope: Tensor | Scratch, first: Tensor, second: Tensor, betas: Sequence[float], eps: float, size: float) -> Each:
    """A chain's step that puts `size` times Adam's uncorrected m / (sqrt(v) + eps) in a gradient's place, after both moments took it in."""
    return Each(_kernel("direct"), _direct, (slope, first, second), (*_weights(betas, eps), size))


def scaling(slope: Tensor | Scratch, first: Tensor, second: Tensor, factors: Tensor, betas: Sequence[float], eps: float, tall: bool) -> Each:
    """A chain's step that gives each channel's factor: the norm of Adam's uncorrected direction over the gradient's, whose place it takes.

    Args:
        tall: whether rows are channels, else columns.
    """
    return Each(_kernel("scale"), _scale, (slope, first, second, factors), (*_weights(betas, eps), 1.0, float(tall)))


def _kernel(name: str) -> int:
    """A function's address, or 0."""
    library = _native.library()
    return 0 if library is None else ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _weights(betas: Sequence[float], eps: float) -> tuple[float, ...]:
    return 1.0 - betas[0], betas[1], 1.0 - betas[1], eps


def _direct(slope: Tensor, first: Tensor, second: Tensor, numbers: Sequence[float]) -> None:
    lean, keep, gain, eps, size = numbers
    first.lerp_(slope, lean)
    second.mul_(keep).addcmul_(slope, slope, value=gain)
    torch.div(first, second.sqrt().add_(eps), out=slope).mul_(size)


def _scale(slope: Tensor, first: Tensor, second: Tensor, factors: Tensor, numbers: Sequence[float]) -> None:
    side = 1 if numbers[-1] else 0
    inside = slope.norm(dim=side, keepdim=True)
    _direct(slope, first, second, numbers[:-1])
    torch.div(slope.norm(dim=side, keepdim=True), inside + 1e-8, out=factors)


def squares(tensors: Sequence[Tensor]) -> list[float] | None:
    """Each tensor's sum of squares, not finite where that of a part is no float32; None where the kernel doesn't reach."""
    library = _reaching(*tensors)
    if library is None:
        return None
    sums = (ctypes.c_double * len(tensors))()
    _run(library.squares, [tensors], sums)
    return list(sums)


SPAN = 16384
"""As in _kernels.c."""
FIELDS = ("weight", "gradient", "factors", "norms")
_MATRIX = struct.Struct(f"{len(FIELDS)}P2qi4x")
"""As `matrix` in _kernels.c: addresses, [rows, columns], and whether channels are rows."""


def matrices(name: str, found: Sequence[dict[str, Tensor]], *numbers: int | float) -> bool:
    """Runs one of the kernels for whole matrices.

    Args:
        found: for each matrix its `gradient` and what else the kernel reads or fills, by the names of `FIELDS`.
        numbers: the kernel's last arguments.
    """
    library = _reaching(*(t for each in found for t in each.values()))
    if library is None:
        return False
    jobs = b"".join([_job(each, *each["gradient"].shape) for each in found])
    getattr(library, name)(jobs, ctypes.c_long(len(found)), *(ctypes.c_float(n) if isinstance(n, float) else n for n in numbers))
    return True


def _job(each: dict[str, Tensor], rows: int, columns: int) -> bytes:
    return _MATRIX.pack(*[each[key].data_ptr() if key in each else 0 for key in FIELDS], rows, columns, rows >= columns)


_SLIM = struct.Struct("7P2qf4xi4x")
"""As `slim` in _kernels.c."""


def reaches(*tensors: Tensor | Packed) -> bool:
    """Whether the kernels work on these."""
    return _reaching(*tensors) is not None


def divided(rows: Iterable[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Those the kernels work on, and the rest. Which a row is among depends on nothing beside it."""
    reached: list[tuple[Any, ...]] = []
    rest: list[tuple[Any, ...]] = []
    for row in rows:
        (reached if reaches(*row) else rest).append(row)
    return reached, rest


def slim_job(on: Sequence[Tensor], low: int, shape: Sequence[int], size: float) -> bytes:
    """A matrix for `slim_steps`.

    Args:
        on: its weight, its gradient, the vector it is projected on, both moments and the last update's norm.
        low: the address of room for as many numbers as its longer side has.
        size: of the update.
    """
    weight, gradient, basis, *kept = (t.data_ptr() for t in on)
    return _SLIM.pack(weight, gradient, basis, low, *kept, *shape, size, shape[0] >= shape[1])


def slim_steps(weights: Sequence[Sequence[bytes]], numbers: Sequence[float]) -> list[bool]:
    """APOLLO at rank 1 on the matrices of several weights; which of these were left alone, as their gradient is too large or not finite."""
    many = len(weights)
    ends, bad = (ctypes.c_long * many)(*accumulate(map(len, weights))), (ctypes.c_uint8 * many)()
    jobs = ctypes.create_string_buffer(b"".join(chain.from_iterable(weights)))
    _native.library().slim_steps(jobs, ends, ctypes.c_long(many), (ctypes.c_float * len(numbers))(*numbers), bad)  # type: ignore[union-attr]
    return list(map(bool, bad))


def _reaching(*tensors: Any) -> ctypes.CDLL | None:
    """The kernels, if they work on these: what `_native.reaching` says, in float32."""
    library = _native.reaching(*tensors)
    return library if library is not None and all(t.dtype == torch.float32 for t in tensors) else None


def _run(kernel: Any, columns: Sequence[Sequence[Any]], *last: Any) -> None:
    many = len(columns[0])
    pointers = [(ctypes.c_void_p * many)(*(t.data_ptr() for t in column)) for column in columns]
    kernel(ctypes.c_long(many), (ctypes.c_long * many)(*(t.numel() for t in columns[0])), *pointers, *last)
