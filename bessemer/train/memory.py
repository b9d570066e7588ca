"""Settings of this process's allocator that training on a processor gains from."""

from __future__ import annotations

import ctypes
import gc

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def give_back() -> bool:
    """Returns what is free to the system, so that memory measured from now on is what is used from now on; whether the C library could."""
    gc.collect()
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def tune() -> bool:
    """Keeps freed memory for the next step instead of giving it back to the system and faulting it in again.

    glibc by default maps every large block anew and unmaps it when freed; a training step allocates the same blocks each
    time, so a fifth of the time goes to page faults. Returns whether the C library took the settings (glibc only).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    limit = (1 << 31) - 1
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, limit) and mallopt(M_TOP_PAD, 64 << 20))
