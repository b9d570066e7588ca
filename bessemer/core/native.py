"""C sources of the package, built once per machine with the C compiler that is there; without one, torch operations do the same."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-fopenmp")
"""OpenMP is the runtime torch has loaded."""


@cache
def build(source: Path, *more: str) -> ctypes.CDLL | None:
    """The library made of one C file, or None where there is no compiler or BESSEMER_NATIVE=0 asks for torch operations.

    Building takes half a second, once per source, machine and user; the file is kept in the user's cache folder.

    Args:
        more: flags beside `FLAGS`.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("BESSEMER_NATIVE") == "0":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bessemer"
    target = base / f"{source.stem.strip('_')}-{_fingerprint(source, compiler, more)}.so"
    try:
        if not target.exists():
            base.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=base) as folder:
                made = Path(folder) / "made.so"
                subprocess.run([compiler, *FLAGS, *more, str(source), "-o", str(made), "-lm"], check=True, capture_output=True, timeout=60)
                os.replace(made, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _fingerprint(source: Path, compiler: str, more: tuple[str, ...]) -> str:
    """Changes with the source and what it includes, the flags, the compiler's path and the processor: `-march=native` code runs only where it was made."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        processor = platform.processor()
    text = "\x1f".join([*_texts(source), *FLAGS, *more, compiler, platform.machine(), processor])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _texts(source: Path) -> list[str]:
    """The source and the headers of ours that it includes."""
    text = source.read_text()
    return [text, *(each for name in re.findall(r'#include "(.+)"', text) for each in _texts(source.parent / name))]
