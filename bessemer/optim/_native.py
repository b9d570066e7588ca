"""The room's C kernels, or None where torch operations do the same."""

from __future__ import annotations

import ctypes
from pathlib import Path

from bessemer.core import native


def library() -> ctypes.CDLL | None:
    """The kernels of `_kernels.c`. A fused multiply-add would round once where torch rounds twice: contraction stays off."""
    return native.build(Path(__file__).with_name("_kernels.c"), "-ffp-contract=off")
