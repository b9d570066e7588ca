"""The source: shares exact over any window, micro-batches cut without losing or repeating a row."""

import pytest
import torch

from bessemer.core.batch import Batch
from bessemer.train.source import Source


class Counting:
    def __init__(self, task):
        self.task = task

    def batch(self, start, rows, *, rank=0, ranks=1):
        numbers = torch.arange(start, start + rows)
        return Batch(numbers[:, None], numbers[:, None], samples=numbers, task=self.task)


def source(**shares):
    return Source({task: Counting(task) for task in shares}, shares, 4)


@pytest.mark.parametrize("sizes", [[16] * 20, [1] * 320, [7, 13, 100, 200]])
def test_every_row_of_every_task_comes_once_and_in_order(sizes):
    feed = source(text=0.7, code=0.2, speech=0.1)
    seen = {"text": [], "code": [], "speech": []}
    at = 0
    for size in sizes:
        batches = feed.next(at, size)
        assert sum(batch.rows for batch in batches) == size
        assert all(batch.rows <= 4 for batch in batches)
        for batch in batches:
            seen[batch.task] += batch.samples.tolist()
        at += size
    feed.close()
    for task, share in [("text", 0.7), ("code", 0.2), ("speech", 0.1)]:
        assert seen[task] == list(range(len(seen[task])))
        assert abs(len(seen[task]) - share * at) <= 1


def test_any_step_can_be_asked_for_at_once():
    straight, jumping = source(a=0.5, b=0.5), source(a=0.5, b=0.5)
    for at in range(0, 64, 16):
        expected = straight.next(at, 16)
    found = jumping.next(48, 16)
    assert [b.samples.tolist() for b in found] == [b.samples.tolist() for b in expected]
    straight.close(), jumping.close()
