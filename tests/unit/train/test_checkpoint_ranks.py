"""Saved under one number of ranks, loaded under another: the same tensors to the bit. Two real processes on gloo, launched once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bessemer.core.errors import BessemerError
from bessemer.train import checkpoint_storage
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import Checkpoint, checkpoints, latest
from bessemer.train.checkpoint_state import restore, state_of


def build(seed: int, shard: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Sizes that two ranks can't share evenly, one of them smaller than the number of ranks; one parameter kept whole by every rank."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Embedding(33, 7), nn.Linear(7, 5), nn.Linear(5, 1), nn.LayerNorm(1))
    if shard:
        fully_shard(net, ignored_params=set(net[3].parameters()))
    return net, torch.optim.AdamW(net.parameters(), lr=0.05)


def update(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An update whose gradients are a function of the whole parameter alone, so that every layout computes the same numbers."""
    for p in net.parameters():
        p.grad = p.detach() * 0.5 + 1
    optimizer.step()


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone() for name, value in tensors.items()}


def rank_main(folder: Path) -> None:
    """What each of the two ranks does; a failed assertion ends the process with an error."""
    rank = int(os.environ["RANK"])
    net, optimizer = build(1, shard=True)
    single = Checkpointer(folder / "single")  # of another number of ranks, in the same place
    found = latest(single.folder)
    assert found is not None
    restore(found, net, [optimizer])
    tensors, plain = state_of(net, [optimizer])
    assert isinstance(tensors["optimizer.0.weight.exp_avg"], DTensor)
    expected, got = found.read(), whole(tensors)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)

    saver = Checkpointer(folder / "double", keep_last=9)
    saver.save(1, tensors, plain)
    saver.before_update()
    update(net, optimizer)
    saver.save(2, *state_of(net, [optimizer]))
    saver.wait()

    write = checkpoint_storage.write_file
    if rank == 1:  # one rank's disk fills
        checkpoint_storage.write_file = lambda path, parts: (_ for _ in ()).throw(OSError(28, "No space left on device", str(path)))
    saver.save(3, *state_of(net, [optimizer]))
    with pytest.raises(BessemerError, match="No space left"):
        saver.wait()
    checkpoint_storage.write_file = write
    dist.barrier()
    assert [path.name for path in checkpoints(saver.folder)] == ["step-00000001", "step-00000002"]

    notes: list[str] = []
    if rank == 0:
        os.truncate(saver.folder / "step-00000002" / "rank-00001.safetensors", 64)
    dist.barrier()
    found = latest(saver.folder, note=notes.append)
    assert found is not None
    assert found.step == 1
    assert len(notes) == 1
    saver.save(2, *state_of(net, [optimizer]))
    saver.wait()
    if rank == 0:
        (folder / "done").write_text(json.dumps(notes))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process saves, two load it, save it and save an update of it."""
    folder = tmp_path_factory.mktemp("ranks")
    net, optimizer = build(0, shard=False)
    update(net, optimizer)
    saver = Checkpointer(folder / "single")
    saver.save(1, *state_of(net, [optimizer]))
    saver.wait()
    children = []
    for rank in range(2):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen([sys.executable, __file__, str(folder)], env=environment, stderr=subprocess.PIPE, text=True))
    answers = [child.communicate(timeout=120)[1] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(answers)
    return folder


def test_saved_by_one_loaded_by_two_saved_by_two_loaded_by_one(ranks: Path) -> None:
    single, double = latest(ranks / "single"), opened(ranks / "double", 1)
    assert single is not None
    assert sorted(path.name for path in double.folder.glob("rank-*")) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    before, after = single.read(), double.read()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert single.plain["optimizers"][0]["groups"] == double.plain["optimizers"][0]["groups"]


def test_training_goes_on_alike_under_one_and_two(ranks: Path) -> None:
    """What two ranks saved after an update equals one process's, from the same checkpoint, and loads into one."""
    found = latest(ranks / "single")
    assert found is not None
    net, optimizer = build(2, shard=False)
    restore(found, net, [optimizer])
    update(net, optimizer)
    expected, _ = state_of(net, [optimizer])
    other, others = build(3, shard=False)
    restore(opened(ranks / "double", 2), other, [others])
    got, _ = state_of(other, [others])
    assert all(torch.allclose(expected[name], got[name], rtol=1e-6, atol=1e-7) for name in expected)


def test_what_is_replicated_is_written_once(ranks: Path) -> None:
    for row in opened(ranks / "double", 2).index.values():
        covered = sum(torch.Size(chunk["shape"]).numel() for chunk in row["chunks"])
        assert covered == torch.Size(row["shape"]).numel()


def test_every_rank_learned_of_damage_and_of_a_full_disk(ranks: Path) -> None:
    assert "step-00000002 is damaged" in json.loads((ranks / "done").read_text())[0]


def opened(folder: Path, step: int) -> Checkpoint:
    return Checkpoint.open(folder / f"step-{step:08d}")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=int(os.environ["RANK"]), world_size=2)
    rank_main(place)
    dist.destroy_process_group()
