"""The one place that names devices: what this machine computes on, in which types, and how fast it can be."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def avoid_broken_tiles() -> bool:
    """Keeps oneDNN off AMX where it would die of an illegal instruction; says whether it had to.

    Some hypervisors show the AMX flags but hide the processor's description of its tiles (leaf 0x1D of CPUID, beyond the
    highest leaf they admit to). oneDNN then configures tiles of size zero and the first bfloat16 product kills the process.
    It reads this variable at its first product, so setting it on import is early enough.
    """
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        return False
    text = _cpuinfo()
    level = re.search(r"^cpuid level\s*:\s*(\d+)", text, re.MULTILINE)
    if " amx_tile" not in text or level is None or int(level[1]) >= 0x1D:
        return False
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    return True


TILES_AVOIDED = avoid_broken_tiles()


@cache
def device() -> torch.device:
    """The accelerator this process trains on, or the processor."""
    wanted = os.environ.get("BESSEMER_DEVICE")
    if wanted:
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def is_accelerator() -> bool:
    """Whether this process computes on something other than the processor."""
    return device().type != "cpu"


def collectives() -> str:
    """The backend ranks talk over: gloo between processors, and beside it NCCL between CUDA devices."""
    return "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"


@cache
def compute_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, else float32.

    Among processors those are the ones with usable tiles (AMX), and AMD's with AVX512-BF16. On Intel's that instruction alone
    runs at half the rate of float32's (measured: 148 against 280 GFLOP/s on an Emerald Rapids without tiles).
    """
    if is_accelerator():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    tiles = torch.cpu._is_amx_tile_supported() and not TILES_AVOIDED and "ONEDNN_MAX_CPU_ISA" not in os.environ
    pairs = "AuthenticAMD" in _cpuinfo() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if tiles or pairs else torch.float32


@cache
def can_compile() -> bool:
    """Whether torch.compile has what it needs here: on a processor, a C++ compiler."""
    return is_accelerator() or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "g++"))


def has_wide_vectors() -> bool:
    """Whether this machine's processor adds and multiplies sixteen numbers at once."""
    return torch.cpu._is_avx512_supported()


def in_main_memory(tensor: torch.Tensor) -> bool:
    """Whether the processor itself works on a tensor."""
    return tensor.device.type == "cpu"


def slow_flash_backward(query: torch.Tensor) -> bool:
    """Whether torch's flash attention is slow backward for a tensor like this: on processors in bfloat16 (benchmarks/attention.py)."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


@cache
def has_grouped_products(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies groups of rows with a matrix each in one kernel, and groups of rows with each other."""
    rows = torch.ones(4, 16, dtype=dtype, device=device())
    matrices = torch.ones(2, 16, 16, dtype=dtype, device=device())
    ends = torch.tensor([1, 4], dtype=torch.int32, device=device())
    try:
        torch.nn.functional.grouped_mm(rows, matrices.mT, offs=ends)
        torch.nn.functional.grouped_mm(rows.mT, rows, offs=ends)
    except (AttributeError, RuntimeError):
        return False
    return True


def synchronise() -> None:
    """Waits until the device has done all it was given; a processor always has."""
    if is_accelerator():
        torch.cuda.synchronize()


@cache
def matrix_peak(dtype: torch.dtype, seconds: float = 0.6) -> float:
    """Measured floating point operations a second of a large matrix product in `dtype`: the limit MFU is held against.

    The best of at least a dozen products over at least `seconds`; on a shared machine the best is the nearest to the limit.
    """
    size = 8192 if is_accelerator() else 1536
    a = torch.randn(size, size, device=device()).to(dtype)
    b = torch.randn(size, size, device=device()).to(dtype)
    return 2 * size**3 / best_time(lambda: torch.mm(a, b), seconds)


def best_time(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of at least a dozen calls over at least `seconds`, after four that don't count."""
    for _ in range(4):
        work()
    best, count, began = float("inf"), 0, time.perf_counter()
    while count < 12 or time.perf_counter() - began < seconds:
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


def copy_bandwidth() -> float:
    """Measured bytes a second of a large copy in memory (read plus written), median of five."""
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        synchronise()
        start = time.perf_counter()
        target.copy_(source)
        synchronise()
        times.append(time.perf_counter() - start)
    return 2 * source.numel() / statistics.median(times)


def memory_in_use() -> int:
    """Bytes held now: by the accelerator's allocator, or resident in this process."""
    if is_accelerator():
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory() -> int:
    """Bytes of memory for one rank: of its accelerator, or of this machine shared by the ranks that run on it."""
    if is_accelerator():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def peak_memory() -> int:
    """The most bytes held so far."""
    if is_accelerator():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def accelerators() -> list[str]:
    """The accelerators there are, with their memory."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{each.name} ({each.total_memory / 1e9:.0f} GB)" for each in found]
