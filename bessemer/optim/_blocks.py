"""Optimizer state held in 8 or 4 bits: blocks of numbers that share a scale, each a code into a table of levels.

8 bits: dynamic tree levels, 256 numbers a block (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). 4 bits: the same
tree for signed state and evenly spaced levels without zero for squares, 128 numbers a block (Li et al. 2023, "Memory Efficient Optimizers
with 4-bit States"). Tensors under 4,096 numbers, or not a whole number of blocks, stay as they are, as in bitsandbytes and torchao.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bessemer.optim import _native

States = Literal["full", "8bit", "4bit"]
"""How a rule's elementwise state is held: in the parameter's own type, or block-quantised."""

BLOCK = {8: 256, 4: 128}
SMALLEST = 4096
TINY = 1e-12
CELLS, LOWEST = 3200, 0x33800000  # as in _kernels.c


class Packed(NamedTuple):
    """A quantised state: codes (uint8; 4-bit ones two a byte), one float32 scale a block, and which levels the codes mean."""

    codes: Tensor
    scales: Tensor
    bits: int
    signed: bool

    def decode(self, out: Tensor, start: int = 0) -> Tensor:
        """Fills `out`, flat float32, with the numbers from `start` on; both are whole blocks."""
        codes, scales = self._span(start, out.numel())
        levels = _levels(self.bits, self.signed)
        library = _native.reaching(codes, scales, out)
        if library is not None:
            _call(library.decode, codes, scales, *self._sizes(scales), levels.table, out)
            return out
        loose = codes if self.bits == 8 else torch.stack([codes >> 4, codes & 15], dim=-1)
        values = levels.table.to(out.device)[loose.view(-1).int()].view(scales.numel(), -1)
        return torch.mul(values, scales.view(-1, 1), out=out.view(scales.numel(), -1)).view(-1)

    def encode(self, values: Tensor, start: int = 0) -> None:
        """Stores flat float32 `values` from `start` on."""
        codes, scales = self._span(start, values.numel())
        levels = _levels(self.bits, self.signed)
        library = _native.reaching(values, codes, scales)
        if library is not None:
            _call(library.encode, values, *self._sizes(scales), codes, scales, levels.candidates, levels.thresholds)
            return
        rows = values.view(scales.numel(), -1)
        torch.clamp(rows.abs().amax(-1), min=TINY, out=scales)
        loose = torch.bucketize((rows / scales.view(-1, 1)).view(-1), levels.thresholds[:-1].to(values.device), right=True).to(torch.uint8)
        codes.copy_(loose if self.bits == 8 else loose[::2] << 4 | loose[1::2])

    def _sizes(self, scales: Tensor) -> tuple[int, int, int]:
        return scales.numel(), BLOCK[self.bits], self.bits

    def _span(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        block, share = BLOCK[self.bits], 8 // self.bits
        return self.codes.view(-1)[start // share : (start + count) // share], self.scales[start // block : (start + count) // block]


def fits(count: int, states: States) -> bool:
    """Whether a tensor of so many numbers is quantised under `states`."""
    return states != "full" and count >= SMALLEST and count % BLOCK[_bits(states)] == 0


def stored_bytes(count: int, states: States, width: int) -> int:
    """Bytes of one state of `count` numbers: `width` each, or codes and a 4-byte scale a block (1.0156 or 0.5313 bytes a number)."""
    if not fits(count, states):
        return count * width
    bits = _bits(states)
    return count * bits // 8 + 4 * (count // BLOCK[bits])


def zeros(state: dict[str, Any], key: str, like: Tensor, states: States) -> None:
    """Puts an all-zero state of the shape of `like` into `state`: `key`, or `key.codes` and `key.scales`."""
    if not fits(like.numel(), states):
        state[key] = torch.zeros_like(like, memory_format=torch.preserve_format)
        return
    bits = _bits(states)
    shape = like.shape if bits == 8 else (like.numel() // 2,)
    state[f"{key}.codes"] = torch.zeros(shape, dtype=torch.uint8, device=like.device)
    state[f"{key}.scales"] = torch.zeros(like.numel() // BLOCK[bits], device=like.device)  # a scale of zero: every code means zero


def held(state: dict[str, Any], key: str, signed: bool) -> Tensor | Packed:
    """What `zeros` put there."""
    if key in state:
        return state[key]
    codes, scales = state[f"{key}.codes"], state[f"{key}.scales"]
    return Packed(codes, scales, 8 if codes.numel() == scales.numel() * BLOCK[8] else 4, signed)


def _bits(states: States) -> int:
    return {"8bit": 8, "4bit": 4}[states]


class _Levels(NamedTuple):
    table: Tensor
    thresholds: Tensor
    candidates: Tensor


@cache
def _levels(bits: int, signed: bool) -> _Levels:
    """The table of levels, from where on each next level is nearer, and where in the table to look first.

    With memory in a dry run too: whatever is made first is kept for all.
    """
    with unset_fake_temporarily():
        return _made_levels(bits, signed)


def _made_levels(bits: int, signed: bool) -> _Levels:
    even = bits == 4 and not signed
    table = torch.linspace(0, 1, 17)[1:] if even else torch.tensor(dynamic_tree(bits, signed), dtype=torch.float32)
    low, gap = table[:-1], table[1:] - table[:-1]
    # the smallest float x with x - low >= gap / 2, found among the neighbours of the middle, so that all ways of encoding agree
    near = (low + gap * 0.5).view(torch.int32)[:, None] + torch.arange(-4, 5, dtype=torch.int32)
    values = near.view(torch.float32).sort(dim=1).values
    up = values - low[:, None] >= gap[:, None] * 0.5
    thresholds = values.gather(1, up.int().argmax(1, keepdim=True))[:, 0]
    edges = (torch.arange(CELLS, dtype=torch.int32) << 16) + LOWEST
    positive = edges.view(torch.float32).clone()
    positive[0] = 0.0
    negative = -((edges + (1 << 16) - 1).view(torch.float32))  # a negative cell's smallest number is its largest magnitude
    candidates = torch.bucketize(torch.cat([positive, negative]), thresholds, right=True).int()
    return _Levels(table, torch.cat([thresholds, torch.tensor([torch.inf])]), candidates)


def dynamic_tree(bits: int, signed: bool) -> list[float]:
    """Dynamic tree levels in [-1, 1] or [0, 1], ascending: a few bits name the decade, the rest divide it evenly.

    Each decade has half as many levels as the one above it, and each level is the middle of its share of the decade.
    """
    decades = bits - 1
    levels = [0.0, 1.0]
    for place in range(decades):
        edges = torch.linspace(0.1, 1, 2**place * (1 if signed else 2) + 1)
        middles = (10.0 ** (place - decades + 1) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        levels += middles + ([-m for m in middles] if signed else [])
    return sorted(levels)


def adamw(p: Tensor, g: Tensor, first: Packed, second: Packed, numbers: list[float]) -> bool:
    """AdamW on one parameter with both states quantised, in one pass; False, and nothing done, where the kernels don't reach.

    Args:
        p, g: float32 and contiguous, on the processor; anything else is left to the caller.
        numbers: 1 - b1, 1 - b2, sqrt(1 - b2^t), epsilon, 1 - rate times decay, and minus the rate over 1 - b1^t.
    """
    states = (first.codes, first.scales, second.codes, second.scales)
    library = _native.reaching(p, g, *states)
    if library is None or not p.dtype == g.dtype == torch.float32:
        return False
    tables = [_Table(*(t.data_ptr() for t in (level.table, level.candidates, level.thresholds))) for level in map(_levels_of, (first, second))]
    options = (ctypes.c_float * len(numbers))(*numbers)
    _call(library.adamw, p, g, *states, *first._sizes(first.scales), *(ctypes.byref(table) for table in tables), options)
    return True


class _Table(ctypes.Structure):
    _fields_ = [("table", ctypes.c_void_p), ("candidates", ctypes.c_void_p), ("thresholds", ctypes.c_void_p)]


def _levels_of(packed: Packed) -> _Levels:
    return _levels(packed.bits, packed.signed)


def _call(kernel: Any, *arguments: Any) -> None:
    """Calls a kernel with tensors as addresses; of the numbers the first is a count of blocks (long), the others are ints."""
    numbers = iter((ctypes.c_long, ctypes.c_int, ctypes.c_int))
    kernel(*[ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else next(numbers)(a) if isinstance(a, int) else a for a in arguments])
