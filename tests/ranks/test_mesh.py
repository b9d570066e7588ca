"""The mesh's arithmetic, the groups it makes, and the pool that tests run their ranks in."""

import time

import pytest
import torch
import torch.distributed as dist

from bessemer.core.errors import RecipeError
from bessemer.core.mesh import AXES, FOLDED, Mesh, World
from tests.ranks.pool import RankError

WIDE = Mesh(pipe=2, replica=2, data=2, context=2, tensor=2, expert=4, expert_tensor=1)


@pytest.mark.parametrize("view", [AXES, FOLDED])
def test_every_rank_has_a_place_of_its_own(view):
    places = {tuple(WIDE.coordinates(rank, view).values()) for rank in range(WIDE.ranks)}
    assert len(places) == WIDE.ranks == 32


@pytest.mark.parametrize("axes", [("tensor",), ("replica", "data"), ("data", "context"), ("expert",), ("expert_data",)])
def test_members_of_an_axis_cut_the_ranks_evenly(axes):
    found = {tuple(WIDE.members(rank, *axes)) for rank in range(WIDE.ranks)}
    assert sorted(rank for group in found for rank in group) == list(range(WIDE.ranks))
    assert {len(group) for group in found} == {WIDE.count(*axes)}
    for group in found:
        assert [WIDE.index(rank, *axes) for rank in group] == list(range(len(group)))


def test_one_process_needs_no_group():
    world = World()
    assert world.alone
    assert world.group("data", "tensor") is None
    assert world.sum(torch.tensor(3.0), *AXES) == 3
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [({"data": 0}, "from 1 on"), ({"dta": 2}, "no such axis"), ({"data": 2, "expert": 3}, "can't be folded"), ({"data": True}, "whole number")],
)
def test_illegal_meshes_are_refused_in_a_sentence(sizes, problem):
    with pytest.raises(RecipeError, match=problem):
        Mesh.of(sizes)


def test_a_mesh_for_other_ranks_than_there_are_is_refused():
    with pytest.raises(RecipeError, match="takes 2 processes, and 1 were started"):
        World(Mesh(data=2))


def sums() -> dict[str, float]:
    world = World(Mesh(replica=2, data=2, tensor=2, expert=2))
    found = {axes: float(world.sum(torch.tensor(float(world.rank)), *axes.split())) for axes in ("tensor", "data", "replica data", "expert")}
    found["agree"] = world.agree(float(world.rank))
    found["any"] = world.any(world.rank == 3)
    found["tensor mesh"] = world.parameters["tensor"].size()
    return found


def test_groups_add_up_their_own_ranks(ranks):
    found = ranks(sums, count=8)
    assert found[5] == {"tensor": 9.0, "data": 12.0, "replica data": 16.0, "expert": 9.0, "agree": 0.0, "any": True, "tensor mesh": 2}
    assert found[0]["data"] == 2.0


def stumble(rank: int, how: str) -> None:
    if dist.get_rank() == rank:
        if how == "raise":
            raise ValueError("stumbled")
        time.sleep(60)
    dist.barrier()


def test_a_rank_that_raises_fails_the_call_with_its_traceback(ranks):
    with pytest.raises(RankError, match=r"rank 1 of 2:(.|\n)*ValueError: stumbled"):
        ranks(stumble, 1, "raise", count=2)
    assert ranks(sums, count=8)[0]["agree"] == 0.0


def test_a_rank_that_hangs_is_killed_and_shown(ranks):
    with pytest.raises(RankError, match=r"rank 1 of 2 had not ended(.|\n)*in stumble"):
        ranks(stumble, 1, "hang", count=2, timeout=3)
