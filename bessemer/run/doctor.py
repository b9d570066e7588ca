"""What this machine has, what will be fast on it, what is missing, and the command that gets it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from bessemer.core import device, products, registry
from bessemer.core.errors import BessemerError
from bessemer.run import energy

OPTIONAL = {
    "transformers": ("checking exports against Hugging Face's own loader", "hub"),
    "datasets": ("reading Hugging Face data sets", "hub"),
    "sentencepiece": ("SentencePiece tokenizers", "hub"),
    "ray": ("cleaning corpora on many machines", "ray"),
    "lm_eval": ("the lm-eval task collection", "harness"),
    "wandb": ("logging to Weights & Biases", "track"),
    "mlflow": ("logging to MLflow", "track"),
}
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "avx512_vnni", "sve", "bf16")
LEAST_FREE = 5e9


def examine(folder: Path, *, measure: bool = True) -> dict[str, Any]:
    """What the machine has, as plain values.

    Args:
        folder: whose disk is looked at.
        measure: time matrix products and copies, about three seconds.

    Raises:
        BessemerError: there is no such folder.
    """
    import torch

    if not folder.is_dir():
        raise BessemerError("there is no such folder", file=folder, key="--out")
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTIONS if name in _flags()],
        "memory_bytes": psutil.virtual_memory().total,
        "memory_free_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "device": str(device.device()),
        "accelerators": device.accelerators(),
        "number_format": str(device.compute_dtype()).removeprefix("torch."),
        "own_products": products.fast() and device.compute_dtype() == torch.float32,
        "compiler": next((path for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and (path := shutil.which(name))), None),
        "energy": energy.Meter().read().how,
        "missing": [name for name in OPTIONAL if importlib.util.find_spec(name) is None],
    }
    if measure:
        found["float32_peak"] = device.matrix_peak(torch.float32)
        found["bfloat16_peak"] = device.matrix_peak(torch.bfloat16)
        with products.rounded(found["own_products"]):
            found["layers_peak"] = products.peak(device.compute_dtype())
        found["copy_bandwidth"] = device.copy_bandwidth()
    return found


def advice(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(good, slow, missing or wrong; a sentence) for everything worth knowing."""
    said = [_numbers(found), _compiler(found)]
    if found["memory_free_bytes"] < 2e9:
        said.append(("wrong", f"only {found['memory_free_bytes'] / 1e9:.1f} GB of memory are free; the demo needs about 2"))
    if found["disk_free_bytes"] < LEAST_FREE:
        said.append(("wrong", f"only {found['disk_free_bytes'] / 1e9:.1f} GB of disk are free here; a run keeps its corpus, tokens and checkpoints"))
    if not found["accelerators"]:
        said.append(("slow", f"there is no accelerator: {found['cores']} cores train models of some millions of parameters, not of billions"))
    if found["threads"] < found["cores"]:
        said.append(("slow", f"torch uses {found['threads']} of {found['cores']} cores; OMP_NUM_THREADS may be set"))
    if "estimated" in found["energy"]:
        said.append(("missing", f"no energy meter this user may read, so energy is {energy.ASSUMPTION}"))
    extras: dict[str, list[str]] = {}
    for name in found["missing"]:
        extras.setdefault(OPTIONAL[name][1], []).append(f"{name} ({OPTIONAL[name][0]})")
    for extra, names in extras.items():
        said.append(("missing", f"{', '.join(names)}: {sys.executable} -m pip install '{_package()}[{extra}]'"))
    return said


def text(found: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"python      {found['python']}, torch {found['torch']}",
        f"processor   {found['processor']}, {found['cores']} cores, {', '.join(found['instructions']) or 'no vector instructions we know'}",
        f"memory      {found['memory_bytes'] / 1e9:.1f} GB, {found['memory_free_bytes'] / 1e9:.1f} GB free",
        f"disk        {found['disk_free_bytes'] / 1e9:.1f} GB free here",
        f"accelerator {', '.join(found['accelerators']) or 'none'}; trains on {found['device']} in {found['number_format']}",
    ]
    if "float32_peak" in found:
        peaks = f"float32 {found['float32_peak'] / 1e9:,.0f}, bfloat16 {found['bfloat16_peak'] / 1e9:,.0f} GFLOP/s"
        lines.append(f"measured    matrix products {peaks}; copies {found['copy_bandwidth'] / 1e9:.1f} GB/s")
    marks = {"good": "✓", "slow": "~", "missing": "-", "wrong": "!"}
    return "\n".join([*lines, "", *(f"  {marks[kind]} {sentence}" for kind, sentence in advice(found))])


def _numbers(found: dict[str, Any]) -> tuple[str, str]:
    if found["own_products"]:
        how = f", {found['layers_peak'] / found['float32_peak']:.1f} times as fast as torch's" if "layers_peak" in found else ""
        return ("good", f"training computes in float32, its layers' products in bfloat16 on tiles which torch can't reach here{how}")
    if "bfloat16_peak" not in found:
        return ("good", f"training computes in {found['number_format']}")
    ratio = found["bfloat16_peak"] / found["float32_peak"]
    if found["number_format"] == "bfloat16":
        kind = "good" if ratio > 1.2 else "slow"
        return (kind, f"training computes in bfloat16, whose matrix products are {ratio:.1f} times as fast as float32's here")
    return ("slow", f"training computes in float32: bfloat16 products are {ratio:.1f} times as fast here, for want of AMX or AVX-512 BF16")


def _compiler(found: dict[str, Any]) -> tuple[str, str]:
    if found["compiler"]:
        return ("good", f"torch.compile can work: {found['compiler']}")
    return ("missing", "no C++ compiler, so nothing is compiled and training is slower: apt-get install g++ (or your system's like)")


def _package() -> str:
    """What pip is to be given: the checkout this runs from, or the package's name."""
    home = registry.PACKAGE.parent
    return str(home) if (home / "pyproject.toml").is_file() else "bessemer"


def _processor() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _flags() -> set[str]:
    for line in _cpuinfo().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""
