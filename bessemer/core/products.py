"""Products of float32 matrices on a processor's tiles, or vectors, of bfloat16 (`products.c`); where there are neither, torch multiplies.

Factors are split into bfloat16 parts whose products are summed in float32. Optimizers hand over many products at once, of which each core takes
whole ones, in as many parts as torch's float32 matmul precision asks for: "highest" three, which is float32; "high" two; "medium" one. Vectors
multiply float32 itself faster than two parts of it, so there one part is rounded and any more are float32.

Layers call `product`. Inside `rounded()` it rounds both factors to bfloat16, as training in bfloat16 does everywhere; what goes in, comes out
and is summed stays float32. oneDNN does such products only where the processor describes its tiles, which some hypervisors hide.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from bessemer.core import device, native

PARTS = {"highest": 3, "high": 2, "medium": 1}
"""bfloat16 parts of a float32 number, by torch's float32 matmul precision."""
ENOUGH = 1 << 20
"""Multiplications from which on a product is worth packing."""
WORTH = 1 << 24
"""Multiplications from which on a layer's product is worth the way here from Python."""
SCRATCH, MATRICES, NUMBERS = 4, 4, 8
"""How many matrices a chain may keep to itself; how many matrices and numbers `Each` may take. As in `products.c`."""
SMALL = 192
"""Symmetric products with sides below this are cheaper whole, where torch multiplies."""
_rounds = _tiles = False


class Scratch(NamedTuple):
    """A matrix that only the steps of one chain see: it stays in the cache of the core that does them.

    Attributes:
        number: one of SCRATCH.
    """

    number: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def stride(self) -> tuple[int, int]:
        """Without gaps, as a tensor would say."""
        return self.columns, 1


class Product(NamedTuple):
    """out = alpha a b (+ beta plus), for matrices.

    Attributes:
        plus: may be `out` itself.
        symmetric: the result is known to be.
        parts: at most so many; two miss float32 by 2^-17 of the factors' sizes, enough for what is added to weights a thousand times as large.
    """

    a: Tensor | Scratch
    b: Tensor | Scratch
    out: Tensor | Scratch
    plus: Tensor | None = None
    beta: float = 1.0
    alpha: float = 1.0
    symmetric: bool = False
    parts: int = 3


class Each(NamedTuple):
    """Something done to matrices where they lie.

    Attributes:
        kernel: the address of a C function (rows, columns, the matrices, their rows' strides, numbers); 0: there is none.
        by_torch: the same with tensors: (matrices..., numbers).
        on: at most MATRICES.
        numbers: at most NUMBERS.
    """

    kernel: int
    by_torch: Callable[..., None]
    on: tuple[Tensor | Scratch, ...]
    numbers: tuple[float, ...]


Chain = Sequence[Product | Each]
"""Steps that follow each other."""


def multiply(products: Sequence[Product]) -> None:
    """Does all of them, in any order."""
    if not all(map(_fits, products)):  # torch is as fast with these, and all of them should lie where the next step looks for them
        for product in products:
            _by_torch(product, {})
        return
    run([[product] for product in products])


def run(chains: Sequence[Chain]) -> None:
    """Does all of them, in any order; each core takes whole ones."""
    library, fitting = _library(), []
    for chain in chains:
        if library is not None and all(map(_fits, chain)):
            fitting.append(chain)
            continue
        held: dict[int, Tensor] = {}
        for step in chain:
            _by_torch(step, held)
    if library is None or not fitting:
        return
    limit = PARTS[torch.get_float32_matmul_precision()]
    steps = b"".join([_STEP.pack(*_fields(step, limit)) for chain in fitting for step in chain])
    ends = (ctypes.c_long * len(fitting))(*accumulate(map(len, fitting)))
    if not library.run(steps, ends, ctypes.c_long(len(fitting))):
        raise MemoryError("no memory is left for packing matrices")


def units() -> Literal["tiles", "vectors"] | None:
    """What the products are done with; None: by torch."""
    return None if _library() is None else "tiles" if _tiles else "vectors"


def fast() -> bool:
    """Whether chains of steps are done here, each by one core."""
    return _library() is not None


@contextmanager
def rounded(wanted: bool = True) -> Iterator[None]:
    """Lets the products of layers inside round their factors to bfloat16, where tiles make that faster."""
    global _rounds
    before, _rounds = _rounds, wanted and units() == "tiles"
    try:
        yield
    finally:
        _rounds = before


def rounds(a: Tensor, b: Tensor) -> bool:
    """Whether `product` would round these factors; asked while compiling."""
    if not _rounds or a.dtype != torch.float32 or b.dtype != torch.float32 or type(b) not in (Tensor, torch.nn.Parameter):
        return False
    return device.in_main_memory(a) and not torch.is_autocast_enabled("cpu") and a.numel() * b.shape[1] >= WORTH


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, rounding if it may: x [..., inputs], weight [outputs, inputs]."""
    if not rounds(x, weight.T):
        return torch.nn.functional.linear(x, weight, bias)
    found = _product(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], len(weight))
    return found if bias is None else found + bias


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, rounding if it may: [rows, depth] and [depth, columns]."""
    return _product(a, b) if rounds(a, b) else a @ b


def add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Adds a b to a matrix in place, outside of any graph."""
    if rounds(a, b) and to.dtype == torch.float32:
        multiply([Product(_dense(a), _dense(b), to, to, parts=1)])
        return to
    return to.addmm_(a, b) if to.dtype == a.dtype else to.add_(a @ b)


def _dense(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()


@torch.library.custom_op("bessemer::product", mutates_args=())
def _product(a: Tensor, b: Tensor) -> Tensor:
    found = a.new_empty(a.shape[0], b.shape[1])
    multiply([Product(_dense(a), _dense(b), found, parts=1)])
    return found


@_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Each factor's gradient in the factor's own layout, so that a weight's need not be copied into place."""
    a, b = ctx.saved_tensors
    of_a = _product(grad, b.T) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return of_a, None
    return of_a, _product(grad.T, a).T if b.stride(0) == 1 else _product(a.T, grad)


_product.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.bessemer.product)  # type: ignore[untyped-decorator]
def _operations(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


@cache
def peak(dtype: torch.dtype) -> float:
    """Measured FLOP/s of large products as layers compute them: torch's in `dtype`, or, inside `rounded()`, those done here if faster."""
    return max(device.matrix_peak(dtype), _own_peak() if _rounds else 0.0)


def _own_peak(side: int = 1536, seconds: float = 0.6) -> float:
    a, b, out = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    return 2 * side**3 / device.best_time(lambda: multiply([Product(a, b, out, parts=1)]), seconds)


@cache
def _library() -> ctypes.CDLL | None:
    global _tiles
    library = native.build(Path(__file__).with_suffix(".c"))
    found = 0 if library is None else library.ready(1)
    _tiles = found > 1
    return library if found else None


def _fits(step: Product | Each) -> bool:
    """Whether the kernels can do this, and do it faster than torch."""
    if isinstance(step, Each):
        return bool(step.kernel) and all(plain(t) and t.stride()[1] == 1 for t in step.on)
    a, b, out, plus = step[:4]
    if a.shape[0] * a.shape[1] * b.shape[1] < ENOUGH or not (1 in a.stride() and 1 in b.stride() and out.stride()[1] == 1):
        return False
    return plain(a) and plain(b) and plain(out) and (plus is None or plus is out or (plain(plus) and plus.stride(1) == 1))


def plain(t: Tensor | Scratch) -> bool:
    """Whether kernels may go by its address: what a dry run works on has no memory, and a sharded tensor isn't the piece of it that lies here."""
    return isinstance(t, Scratch) or (type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and t.dtype == torch.float32)


_STEP = struct.Struct(f"4P9q2f2iP2q{MATRICES}P{MATRICES}q{NUMBERS}f")
"""As `step` in products.c."""


def _fields(step: Product | Each, limit: int) -> tuple[float, ...]:
    """What stands in `_STEP`."""
    if isinstance(step, Product):
        a, b, out, plus, beta, alpha, symmetric, parts = step
        (rows, depth), columns = a.shape, b.shape[1]
        where = _address(a), _address(b), 0 if plus is None else plus.data_ptr(), _address(out)
        strides = *a.stride(), *b.stride(), out.stride()[0], 0 if plus is None else plus.stride(0)
        return *where, rows, columns, depth, *strides, alpha, beta, symmetric, min(parts, limit), *_NOTHING
    none = (0,) * (MATRICES - len(step.on))
    on = *map(_address, step.on), *none, *(t.stride()[0] for t in step.on), *none
    return *_NO_PRODUCT, step.kernel, *step.on[0].shape, *on, *step.numbers, *(0.0,) * (NUMBERS - len(step.numbers))


_NO_PRODUCT, _NOTHING = (0,) * 17, (0,) * (3 + 2 * MATRICES + NUMBERS)


def _address(t: Tensor | Scratch) -> int:
    return t.number + 1 if isinstance(t, Scratch) else t.data_ptr()


def _by_torch(step: Product | Each, held: dict[int, Tensor]) -> None:
    """A step of a chain whose scratch matrices are `held`."""
    if isinstance(step, Each):
        step.by_torch(*(held[t.number] if isinstance(t, Scratch) else t for t in step.on), step.numbers)
        return
    a, b = (held[t.number] if isinstance(t, Scratch) else t for t in (step.a, step.b))
    if isinstance(step.out, Scratch):
        held[step.out.number] = a.new_empty(step.out.shape)
    out = held[step.out.number] if isinstance(step.out, Scratch) else step.out
    plus, beta, alpha, symmetric = step.plus, step.beta, step.alpha, step.symmetric
    side = len(out)
    size = -(-side // 4) if symmetric and side >= SMALL and out.is_cpu else side
    for start in range(0, side, size):
        rows = slice(start, start + size)
        columns = slice(start if symmetric else 0, None)
        to = out[rows, columns]
        if plus is None:
            torch.mm(a[rows], b[:, columns], out=to)
            if alpha != 1.0:
                to.mul_(alpha)
        else:
            torch.addmm(plus[rows, columns], a[rows], b[:, columns], beta=beta, alpha=alpha, out=to)
    for start in range(size, side, size):
        rows = slice(start, start + size)
        out[rows, :start] = out[:start, rows].mT
