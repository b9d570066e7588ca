"""Two processes of plain torch, as one writes them by hand: what our layouts are held against. Imports nothing of ours.

    python parallel_loops.py {ddp,fsdp} {tiny,small} {bfloat16,float32} FILE [--eager]

DDP around a compiled model, or FSDP2 around each compiled block and the rest, on gloo, one thread each. Trains until it is killed; the
first rank writes the time after each step into FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from loops import SHAPES, ByHand
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


def rank(number: int, given: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=number, world_size=2)
    c, dtype = SHAPES[given.shape], getattr(torch, given.dtype)
    torch.manual_seed(0)
    run = model = ByHand(c)
    if given.layout == "fsdp":
        for block in model.blocks:
            if not given.eager:
                block.compile()
            fully_shard(block)
        fully_shard(model)
    else:
        run = DistributedDataParallel(model)
        run = run if given.eager else torch.compile(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=given.layout == "ddp")
    draw, rows = torch.Generator().manual_seed(number), c["rows"] // 2
    while True:
        tokens = torch.randint(0, c["vocabulary"], (rows, c["length"] + 1), generator=draw)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(run(tokens[:, :-1]).float().view(-1, c["vocabulary"]), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss)
        if number == 0:
            with open(given.file, "a") as out:
                out.write(json.dumps({"step": time.time()}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("layout", choices=["ddp", "fsdp"])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("dtype", choices=["bfloat16", "float32"])
    parser.add_argument("file")
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank, (given, port), nprocs=2)


if __name__ == "__main__":
    main()
