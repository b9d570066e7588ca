"""The source: shares exact over any window, micro-batches cut without losing or repeating a row."""

import json

import pytest
import torch

from bessemer.core.batch import Batch
from bessemer.core.progress import Progress
from bessemer.train.source import Feed, Source


class Counting:
    def __init__(self, task):
        self.task = task

    def batch(self, start, rows, *, rank=0, ranks=1):
        numbers = torch.arange(start, start + rows)
        return Batch(numbers[:, None], numbers[:, None], samples=numbers, task=self.task)


def source(**shares):
    return Source({task: Feed(Counting(task), share) for task, share in shares.items()}, 4)


@pytest.mark.parametrize("sizes", [[16] * 20, [1] * 320, [7, 13, 100, 200]])
def test_every_row_of_every_task_comes_once_and_in_order(sizes):
    feed = source(text=0.7, code=0.2, speech=0.1)
    seen = {"text": [], "code": [], "speech": []}
    at = 0
    for size in sizes:
        batches = feed.next(Progress(samples=at), size)
        assert sum(batch.rows for batch in batches) == size
        assert all(batch.rows <= 4 for batch in batches)
        for batch in batches:
            seen[batch.task] += batch.samples.tolist()
        at += size
    feed.close()
    for task, share in [("text", 0.7), ("code", 0.2), ("speech", 0.1)]:
        assert seen[task] == list(range(len(seen[task])))
        assert abs(len(seen[task]) - share * at) <= 1


def test_it_goes_on_from_its_state():
    straight, later = source(a=0.3, b=0.7), source(a=0.3, b=0.7)
    for _ in range(3):
        straight.next(Progress(), 10)
    later.restore(json.loads(json.dumps(straight.state())))
    expected, found = straight.next(Progress(), 10), later.next(Progress(), 10)
    assert [(b.task, b.samples.tolist()) for b in found] == [(b.task, b.samples.tolist()) for b in expected]
    straight.close(), later.close()


def test_units_stay_whole_and_get_their_share():
    feed = Source({"pairs": Feed(Counting("pairs"), 1.0, unit=6), "text": Feed(Counting("text"), 1.0)}, 4)
    rows = {"pairs": 0, "text": 0}
    for _ in range(50):
        for batch in feed.next(Progress(), 10):
            assert batch.task == "text" or (batch.rows == 6 and int(batch.samples[0]) % 6 == 0)
            rows[batch.task] += batch.rows
    feed.close()
    assert abs(rows["pairs"] - 250) <= 6
    assert sum(rows.values()) == 500


def test_a_task_is_on_only_in_its_span():
    feed = Source({"first": Feed(Counting("first"), 1.0, stop=0.5), "last": Feed(Counting("last"), 3.0, start=0.25)}, 4)
    seen = []
    for step in range(8):
        seen.append({batch.task: batch.rows for batch in feed.next(Progress(step=step, steps=8), 4)})
    feed.close()
    assert seen == [{"first": 4}] * 2 + [{"first": 1, "last": 3}] * 2 + [{"last": 4}] * 4


def test_every_rank_reads_its_block_of_every_micro_batch():
    class Blocks(Counting):
        def batch(self, start, rows, *, rank=0, ranks=1):
            return super().batch(start + rows * rank // ranks, rows * (rank + 1) // ranks - rows * rank // ranks)

    parts = [Source({"a": Feed(Blocks("a"))}, 4, rank, 2) for rank in range(2)]
    found = [[b.samples.tolist() for b in part.next(Progress(), 10)] for part in parts]
    assert found == [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7], [9]]]
    for part in parts:
        part.close()
