"""The room's C kernels, or None where torch operations do the same."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bessemer.core import native

_OWN = frozenset((Tensor, torch.nn.Parameter))


@cache
def library() -> ctypes.CDLL | None:
    """The kernels of `_kernels.c`. A fused multiply-add would round once where torch rounds twice: contraction stays off."""
    return native.build(Path(__file__).with_name("_kernels.c"), "-ffp-contract=off")


def reaching(*tensors: Any) -> ctypes.CDLL | None:
    """The kernels where they may go by these tensors' addresses: plain ones without gaps, on a processor.

    What a dry run works on has no memory, and a sharded tensor isn't the piece of it that lies here.
    """
    plain = all(type(t) in _OWN and t.is_cpu and t.is_contiguous() for t in tensors)
    return library() if plain else None
