"""A process that has imported everything and forks a child for each command: a launch for milliseconds instead of seconds.

Reads lines of JSON, {"argv": [...], "log": path}, and answers with the child's pid; later with its exit status.
"""

import json
import os
import sys

import torch
import torch._dynamo
import torch.distributed.checkpoint
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from bessemer import cli

torch.set_num_threads(1)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os._exit(cli.main(order["argv"]))
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
