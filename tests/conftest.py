"""What holds for every test: one thread, and the machine set up before anything is multiplied."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start; tiny models only lose by a second thread
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bessemer.core.device  # noqa: F401, I001 - before torch multiplies anything
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("house")
