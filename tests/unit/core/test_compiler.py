"""Kernels compiled together compute what they would alone, and are fewer libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bessemer.core import compiler_notes, device

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
print("setuptools" in sys.modules)
"""


def computes(folder: Path) -> bool:
    """Whether the program had to look for its kernels, having computed what the eager one does."""
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1] == "True"


@pytest.mark.skipif(not device.can_compile() or device.is_accelerator(), reason="joins what a C++ compiler compiles")
def test_joined_kernels_compute_what_the_eager_ones_do(tmp_path: Path) -> None:
    assert computes(tmp_path)
    assert not computes(tmp_path), "the compiler looked for kernels that a note says the place of"
    joined = [file for file in tmp_path.rglob("*.main.cpp") if "all_kernels" in file.read_text()]
    bodies = sum(file.read_text().count("static void kernel_") for file in joined)
    assert joined, "no library holds several kernels"
    assert bodies > len(joined)


@pytest.mark.skipif(not device.can_compile() or device.is_accelerator(), reason="joins what a C++ compiler compiles")
def test_notes_that_are_wrong_cost_time_alone(tmp_path: Path) -> None:
    computes(tmp_path)
    for library in tmp_path.rglob("*.main.so"):
        library.unlink()
    for note in (tmp_path / "bessemer").glob("torch-*"):
        note.write_text("no number")
    assert computes(tmp_path)
    assert list(tmp_path.rglob("*.main.so"))


def test_torchs_key_is_its_own_until_a_source_changes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    source = tmp_path / "deep" / "a.py"
    source.write_text("x = 1")
    first = compiler_notes.stamp(tmp_path, ".py")
    assert compiler_notes.stamp(tmp_path, ".py") == first
    (tmp_path / "deep" / "a.txt").write_text("no source")
    assert compiler_notes.stamp(tmp_path, ".py") == first
    source.write_text("x = 22")
    second = compiler_notes.stamp(tmp_path, ".py")
    (tmp_path / "b.py").write_text("")
    assert len({first, second, compiler_notes.stamp(tmp_path, ".py")}) == 3


def test_a_note_says_what_was_written_about_just_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    about = compiler_notes.note("library", "code", 1)
    assert compiler_notes.read(about) is None
    compiler_notes.write(about, "here")
    assert compiler_notes.read(compiler_notes.note("library", "code", 1)) == "here"
    assert compiler_notes.read(compiler_notes.note("library", "code", 2)) is None
    assert not list((tmp_path / "cache" / "bessemer").glob("tmp*"))
