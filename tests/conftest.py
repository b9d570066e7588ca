"""What holds for every test: one thread, the machine set up before anything is multiplied, and who does what when two workers share the tests."""

import os
import shutil
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; tiny models only lose by a second thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bessemer.core.device  # noqa: F401, I001 - before torch multiplies anything
import pytest
import torch
from hypothesis import settings

from tests import folders

MANY = ("tests/ranks/", "tests/fault/", "tests/unit/train/test_checkpoint_ranks")
"""Tests that start several processes each: one worker does them all, so that two of them never press on the machine together."""

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("house")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Takes away the folders that this process and those it started made outside of pytest's own."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(folders.ROOT, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` one worker takes the tests of many processes, and the other the rest, file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByKind(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "many" if file.startswith(MANY) else file

    return ByKind(config, log)
