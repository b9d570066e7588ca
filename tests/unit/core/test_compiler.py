"""Kernels compiled together compute what they would alone, and are fewer libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bessemer.core import device

PROGRAM = """
import sys, torch
from bessemer.core import compiler

def work(x, y, index):
    a = torch.softmax(x * y, -1).cumsum(0)
    b = torch.nn.functional.layer_norm(x[index], (x.shape[1],)) @ y.T
    return (a.relu() + b.sum()).square().mean() + (b * 0.5).tanh().amax()

def answer(function):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(37, 24, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    value = function(x, y, torch.arange(36, -1, -1))
    value.backward()
    return value.detach(), x.grad, y.grad

compiler.fuse(True)
for mine, plain in zip(answer(torch.compile(work)), answer(work), strict=True):
    torch.testing.assert_close(mine, plain)
from torch._inductor.async_compile import AsyncCompile
assert hasattr(AsyncCompile.cpp_pybinding, "alone"), "this torch does not let kernels be joined"
"""


@pytest.mark.skipif(not device.can_compile() or device.is_accelerator(), reason="joins what a C++ compiler compiles")
def test_joined_kernels_compute_what_the_eager_ones_do(tmp_path: Path) -> None:
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    for _ in range(2):  # compiled, then from the cache
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    joined = [file for file in tmp_path.rglob("*.main.cpp") if "all_kernels" in file.read_text()]
    bodies = sum(file.read_text().count("static void kernel_") for file in joined)
    assert joined, "no library holds several kernels"
    assert bodies > len(joined)
