"""The room's C kernels, built once per machine with the C compiler that is there; without one, torch operations do the same."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("_kernels.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=off", "-shared", "-fPIC", "-fopenmp")
# A fused multiply-add would round once where torch rounds twice: contraction stays off. OpenMP is the runtime torch has loaded.


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there is no compiler or BESSEMER_NATIVE=0 asks for torch operations.

    Building takes half a second, once per source, machine and user; the file is kept in the user's cache folder.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("BESSEMER_NATIVE") == "0":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bessemer"
    target = base / f"kernels-{_fingerprint(compiler)}.so"
    try:
        if not target.exists():
            base.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=base) as folder:
                made = Path(folder) / "kernels.so"
                subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"], check=True, capture_output=True, timeout=60)
                os.replace(made, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the flags, the compiler's path and the processor: `-march=native` code runs only where it was made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        processor = platform.processor()
    text = "\x1f".join([SOURCE.read_text(), *FLAGS, compiler, platform.machine(), processor])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
