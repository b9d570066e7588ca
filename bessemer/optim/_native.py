"""The room's C kernels, or None where torch operations do the same."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from bessemer.core import native


@cache
def library() -> ctypes.CDLL | None:
    """The kernels of `_kernels.c`. A fused multiply-add would round once where torch rounds twice: contraction stays off."""
    return native.build(Path(__file__).with_name("_kernels.c"), "-ffp-contract=off")
