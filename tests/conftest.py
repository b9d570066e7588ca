"""What holds for every test: one thread, the machine set up before anything is multiplied, and who does what when two workers share the tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; tiny models only lose by a second thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bessemer.core.device  # noqa: F401, I001 - before torch multiplies anything
import pytest
import torch
from hypothesis import settings

MANY = ("tests/ranks/", "tests/fault/", "tests/unit/train/test_checkpoint_ranks")
"""Tests that start several processes each: one worker does them all, so that two of them never press on the machine together."""

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("house")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup` one worker takes the tests of many processes, first of all, and the other the rest, file by file."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("many" if file.startswith(MANY) else file))
    items.sort(key=lambda item: not item.nodeid.startswith(MANY))  # stable
