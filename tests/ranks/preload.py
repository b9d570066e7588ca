"""What the forkserver imports once, so that no rank has to."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import bessemer.core.device  # noqa: I001
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel
import torch._dynamo  # noqa: F401

import bessemer.models.families.decoder
import bessemer.train.engine
import bessemer.train.optimizers  # noqa: F401
