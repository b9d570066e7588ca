"""Lint and types, so that `make test` is all there is to pass."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_ruff_is_clean():
    check("ruff", "check", "bessemer", "tests", "benchmarks")


def test_format_is_even():
    check("ruff", "format", "--check", "bessemer", "tests", "benchmarks")


@pytest.mark.timeout(900)  # without a cache, and beside eight ranks on two cores
def test_types_are_clean():
    check("mypy")
