"""A model and its optimizers survive a checkpoint to the bit, and one of another make is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bessemer.core.errors import ArtifactError, BessemerError
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import Checkpoint, latest
from bessemer.train.checkpoint_state import restore, state_of


class Net(nn.Module):
    def __init__(self, vocabulary: int = 50, width: int = 16, tied: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, dtype=dtype)
        self.block = nn.Sequential(nn.Linear(width, width, dtype=dtype), nn.BatchNorm1d(width, dtype=dtype))
        self.head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(tokens)))


class Odd(torch.optim.Optimizer):
    """State of every sort: numbers, words, None, lists of tensors, dicts; a counter among the group's options."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "count": 0, "betas": (0.5, 0.25)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, past=[torch.zeros_like(p), torch.zeros_like(p)], stats={"row": p.sum(-1).float(), "mode": "x", "none": None})
                state["step"] += 1
                state["past"] = [p.grad.clone(), state["past"][0]]
                p -= group["lr"] * (state["past"][0] + state["past"][1]) / state["step"] + 1e-3 * group["count"]


def adamw_and_sgd(net: Net, **options: Any) -> list[torch.optim.Optimizer]:
    groups = [{"params": list(net.block.parameters()), "lr": 1e-2}, {"params": [net.embed.weight]}]
    return [torch.optim.AdamW(groups, **options), torch.optim.SGD([net.head.weight], lr=0.1, momentum=0.9)]


def train(net: Net, optimizers: list[torch.optim.Optimizer], first: int, last: int) -> None:
    for step in range(first, last):
        tokens = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(net(tokens).float(), tokens).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def saved(folder: Path, net: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Checkpoint:
    saver = Checkpointer(folder)
    saver.save(3, *state_of(net, optimizers))
    saver.wait()
    found = latest(folder)
    assert found is not None
    return found


def assert_same(a: tuple[dict, dict], b: tuple[dict, dict]) -> None:
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][name], b[0][name]) and a[0][name].dtype == b[0][name].dtype for name in a[0])
    assert a[1] == b[1]


MAKERS = {
    "fused": lambda net: adamw_and_sgd(net, fused=True),
    "foreach": lambda net: adamw_and_sgd(net, foreach=True),
    "amsgrad": lambda net: adamw_and_sgd(net, amsgrad=True),
    "odd": lambda net: [Odd(net.parameters())],
    "adagrad": lambda net: [torch.optim.Adagrad(net.parameters())],
    "adafactor": lambda net: [torch.optim.Adafactor(net.parameters())],
    "rprop": lambda net: [torch.optim.Rprop(net.parameters())],
}


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
@pytest.mark.parametrize("maker", MAKERS)
def test_training_goes_on_to_the_bit(tmp_path: Path, maker: str, fresh: bool) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizers = MAKERS[maker](net)
    train(net, optimizers, 0, 3)
    found = saved(tmp_path, net, optimizers)
    train(net, optimizers, 3, 6)
    torch.manual_seed(1)
    other = Net()
    others = MAKERS[maker](other)
    if not fresh:
        train(other, others, 10, 12)
    restore(found, other, others)
    train(other, others, 3, 6)
    assert_same(state_of(net, optimizers), state_of(other, others))


def test_state_of_higher_precision_than_its_parameter_keeps_it(tmp_path: Path) -> None:
    """torch's own load_state_dict casts it to the parameter's type."""
    net = Net(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    precise = {p: torch.randn(p.shape) for p in net.parameters()}
    for p, value in precise.items():
        optimizer.state[p] = {"momentum_buffer": value.clone()}
    found = saved(tmp_path, net, [optimizer])
    optimizer.state.clear()
    restore(found, net, [optimizer])
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], value) for p, value in precise.items())


def test_going_back_to_before_the_first_update_leaves_no_state(tmp_path: Path) -> None:
    net = Net()
    optimizers = adamw_and_sgd(net)
    found = saved(tmp_path, net, optimizers)
    train(net, optimizers, 0, 2)
    restore(found, net, optimizers)
    assert not optimizers[0].state


def test_names_do_not_depend_on_compiling_and_ties_are_saved_once(tmp_path: Path) -> None:
    net = Net(tied=True)
    found = saved(tmp_path, net, [])
    assert "model.embed.weight" in found.shapes
    assert "model.head.weight" not in found.shapes
    net.block = torch.compile(net.block)
    assert state_of(net)[0].keys() == found.shapes.keys()
    restore(found, net)


def test_buffers_are_copied_when_saved() -> None:
    net = Net()
    tensors, _ = state_of(net)
    before = tensors["model.block.1.running_mean"].clone()
    net(torch.arange(8))
    assert torch.equal(tensors["model.block.1.running_mean"], before)
    assert not torch.equal(net.block[1].running_mean, before)


def test_options_are_restored_and_kernels_are_not(tmp_path: Path) -> None:
    net = Net()
    first = torch.optim.AdamW(net.parameters(), lr=0.5, fused=True)
    found = saved(tmp_path, net, [first])
    second = torch.optim.AdamW(net.parameters(), lr=0.1, foreach=True)
    restore(found, net, [second])
    assert second.param_groups[0]["lr"] == 0.5
    assert second.param_groups[0]["foreach"] is True
    assert not second.param_groups[0]["fused"]


def one_adam(net: Net) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(net.parameters())]


@pytest.mark.parametrize(
    ("build", "optimizers", "says"),
    [
        (lambda: Net(vocabulary=60), one_adam, "embed.weight: is 50 x 16 in the checkpoint and 60 x 16 here\n  mend: .*vocabularies differ"),
        (lambda: Net(width=8), one_adam, "is .*16 in the checkpoint and .*8 here"),
        (lambda: Net(dtype=torch.float64), one_adam, "is float32 in the checkpoint and float64 here"),
        (lambda: nn.Sequential(Net()), one_adam, "is in the checkpoint but not in the model"),
        (lambda: Net(tied=True), one_adam, "model.head.weight: is in the checkpoint but not"),
        (Net, lambda net: [torch.optim.SGD(net.parameters())], "holds the state of AdamW where this run has SGD"),
        (Net, lambda net: adamw_and_sgd(net), "holds 1 optimizers and this run has 2"),
        (Net, lambda net: [torch.optim.AdamW(list(net.parameters())[:2])], "groups the parameters of AdamW otherwise"),
        (Net, lambda net: [torch.optim.AdamW(list(net.parameters())[::-1])], "groups the parameters of AdamW otherwise"),
    ],
)
def test_another_model_or_optimizer_is_refused_and_left_as_it_was(tmp_path: Path, build: Any, optimizers: Any, says: str) -> None:
    net = Net()
    optimizer = one_adam(net)
    train(net, optimizer, 0, 1)
    found = saved(tmp_path, net, optimizer)
    other = build()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ArtifactError, match=f"(?s){says}"):
        restore(found, other, optimizers(other))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_state_that_can_not_be_stored_is_named() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters())
    optimizer.state[net.head.weight] = {"way": object()}
    with pytest.raises(BessemerError, match=r"optimizer\.head\.weight\.way: is a object"):
        state_of(net, [optimizer])
    with pytest.raises(BessemerError, match="none of the model's"):
        state_of(net, [torch.optim.SGD([nn.Parameter(torch.ones(3))])])
