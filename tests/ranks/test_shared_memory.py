"""Ranks of one machine exchange through memory they have in common, get what the network would have given them, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bessemer.core import shared_memory
from bessemer.core.mesh import Mesh
from bessemer.parallel import neighbours
from tests.ranks import layouts


def written() -> list[Any]:
    """What this rank reads of all others' rows, and whether a piece is used again after its turns."""
    group = dist.group.WORLD
    rooms = shared_memory.Rooms(group, apart=2)
    seen, places = [], []
    for turn in range(4):
        room = rooms.next(3, torch.float32)
        assert room is not None
        room[dist.get_rank()] = 10.0 * turn + dist.get_rank()
        dist.barrier()
        seen.append(room[:, 0].tolist())
        places.append(room.data_ptr())
    larger = rooms.next(1000, torch.float32)
    assert larger is not None
    return [seen, [places.index(place) for place in places], larger.data_ptr() in places]


def test_what_one_rank_writes_the_others_read(ranks):
    for seen, places, again in ranks(written, count=3):
        assert seen == [[10.0 * turn + rank for rank in range(3)] for turn in range(4)]
        assert places == [0, 1, 0, 1]
        assert not again
    assert not list(Path(shared_memory.FOLDER).glob("bessemer-*"))


def trained(parallel: dict[str, Any], folder: str | None) -> tuple[dict[str, Any], int]:
    """Two steps, and how many of FSDP2's gathers and scatters went through common memory."""
    shared_memory.FOLDER = folder or "/dev/shm"
    neighbours.Scatter.__call__, usual = counting(neighbours.Scatter.__call__), neighbours.Scatter.__call__  # type: ignore[method-assign]
    try:
        found = layouts.train(Mesh(data=2), parallel, {}, layouts.ADAMW, "next_token", False)
        return found, counting.shared
    finally:
        neighbours.Scatter.__call__ = usual  # type: ignore[method-assign]
        shared_memory.FOLDER = "/dev/shm"


def counting(call: Any) -> Any:
    counting.shared = 0  # type: ignore[attr-defined]

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        counting.shared += self.room is not None  # type: ignore[attr-defined]
        return call(self, *given, **named)

    return counted


@pytest.mark.parametrize("shard", ["none", "state", "full"])
def test_it_gives_what_the_network_gives_to_the_bit(ranks, shard, tmp_path):
    (memory, shared), (network, none), (without, fallen_back) = (
        ranks(trained, {"shard": shard, "exchange": exchange}, folder, count=2)[0]
        for exchange, folder in (("memory", None), ("network", None), ("memory", str(tmp_path / "nowhere")))
    )
    assert (none, fallen_back) == (0, 0)
    assert (shared > 0) == (shard != "none")
    for other in (network, without):
        assert memory.keys() == other.keys()
        assert all(same(memory[key], other[key]) for key in memory)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
