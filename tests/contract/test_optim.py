"""Every optimizer continues bit by bit from a checkpoint, descends, holds what it documents, and survives odd gradients."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from bessemer.core import products, registry
from bessemer.core.errors import ArtifactError
from bessemer.optim import _native
from bessemer.optim._rule import Rule
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import latest
from bessemer.train.checkpoint_state import restore, state_of

NAMES = registry.names("optim")
SMALL = {"rank": 4, "refresh": 3, "every": 3}
"""Options that make a method do on small matrices what it does on large ones."""
NUMBERS = {"adamw": 2, "muon": 1}
"""Numbers a parameter of torch's own kernels and of those that document it in words."""
MATRICES_ONLY = {"muon"}


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def ways(request, monkeypatch):
    """With our own kernels, and as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(_native, "library", lambda: None)
        monkeypatch.setattr(products, "_library", lambda: None)


class Net(nn.Module):
    """Matrices wide, tall and square, one of them stacked, and a vector; the largest is large enough to be quantised."""

    def __init__(self, seed=0, vector=True):
        super().__init__()
        made = torch.Generator().manual_seed(seed)
        for name, shape in {"wide": (32, 128), "tall": (80, 12), "square": (16, 16), "stacked": (96, 64)}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=made) / math.sqrt(shape[1])))
        if vector:
            self.vector = nn.Parameter(torch.ones(24))


PARTS = {"stacked": (64, 16, 16)}


def build(name, model, **options):
    """As bessemer/train/optimizers.py builds it: groups of parameters with names, rates and parts."""
    fields = registry.schema(registry.find("optim", name)).model_fields
    choice = registry.choose("optim", {"name": name, **{k: v for k, v in SMALL.items() if k in fields}, **options})
    named = list(model.named_parameters())
    rate = choice.options["lr"]
    groups = [
        {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "lr": rate,
            "base_lr": rate,
            "parts": [PARTS.get(n, ()) for n, _ in members],
        }
        for members in (named[:2], named[2:])
    ]
    return choice(groups)


def net(name, seed=0):
    return Net(seed, vector=name not in MATRICES_ONLY)


def draw(model, step, scale=0.01):
    for number, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + number)) * scale


def steps(model, optimizer, numbers):
    for step in numbers:
        draw(model, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * (1 - step / 40)
        optimizer.step()


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def save(folder, step, model, optimizer):
    saver = Checkpointer(folder)
    saver.save(step, *state_of(model, [optimizer]))
    saver.wait()


@pytest.mark.parametrize("name", NAMES)
def test_continues_from_a_checkpoint_bit_by_bit(name, tmp_path):
    model = net(name)
    optimizer = build(name, model)
    steps(model, optimizer, range(5))
    save(tmp_path, 5, model, optimizer)
    steps(model, optimizer, range(5, 11))
    again = net(name, seed=1)
    fresh = build(name, again)
    restore(latest(tmp_path), again, [fresh])
    steps(again, fresh, range(5, 11))
    assert equal(model, again)


@pytest.mark.parametrize("name", NAMES)
def test_goes_back_to_a_checkpoint_bit_by_bit(name, tmp_path):
    """As the guard does, in the middle of a run; also to where nothing had moved yet."""
    model = net(name)
    optimizer = build(name, model)
    save(tmp_path, 1, model, optimizer)
    ways = []
    for _ in range(2):
        steps(model, optimizer, range(7))
        ways.append([p.detach().clone() for p in model.parameters()])
        restore(latest(tmp_path), model, [optimizer])
    assert all(torch.equal(a, b) for a, b in zip(*ways, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_continues_from_a_state_dict_bit_by_bit(name):
    model = net(name)
    optimizer = build(name, model)
    steps(model, optimizer, range(5))
    again = net(name, seed=1)
    again.load_state_dict(model.state_dict())
    fresh = build(name, again)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, range(5, 11))
    steps(again, fresh, range(5, 11))
    assert equal(model, again)


@pytest.mark.parametrize("name", NAMES)
def test_descends(name):
    """A regression through a matrix with correlated inputs, at the method's own default rate, ten times more or ten times less."""
    made = torch.Generator().manual_seed(3)
    inputs = torch.randn(256, 64, generator=made) * torch.linspace(0.2, 2, 64)
    target = inputs @ torch.randn(64, 32, generator=made) / 8
    reached = []
    for factor in (10.0, 1.0, 0.1):
        model = nn.Linear(64, 32, bias=False)
        nn.init.normal_(model.weight, std=0.02, generator=torch.Generator().manual_seed(0))
        rate = registry.choose("optim", name).options["lr"] * factor
        optimizer = build(name, model, lr=rate)
        losses = []
        for _ in range(100):
            loss = (model(inputs) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        reached.append(losses[-1] / losses[0])
    assert min(reached) < 0.9, reached


@pytest.mark.parametrize("name", NAMES)
def test_state_takes_the_bytes_documented(name):
    model = net(name)
    optimizer = build(name, model)
    steps(model, optimizer, range(4))
    for label, p in model.named_parameters():
        held = sum(v.numel() * v.element_size() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor) and k != "step")
        if isinstance(optimizer, Rule):
            expected = optimizer.state_bytes(p.shape, p.element_size(), PARTS.get(label, ()))
        else:
            expected = NUMBERS[name] * p.numel() * p.element_size()
        assert held == expected, label


@pytest.mark.parametrize("name", NAMES)
def test_a_group_at_rate_zero_stays(name):
    model = net(name)
    optimizer = build(name, model)
    before = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
    optimizer.param_groups[0]["lr"] = 0.0
    for step in range(3):
        draw(model, step)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before[0], optimizer.param_groups[0]["params"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[1], optimizer.param_groups[1]["params"], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_zero_missing_and_late_gradients(name):
    model = net(name)
    optimizer = build(name, model)
    first = next(model.parameters())
    kept = first.detach().clone()
    for step in range(6):
        draw(model, step)
        if step < 3:
            first.grad = None
            model.tall.grad.zero_()
        optimizer.step()
        if step < 3:
            assert torch.equal(first, kept)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(first, kept)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay_and_have_no_state(name):
    """Frozen from the start, and frozen after two steps: the value stays, and so does what state there is."""
    model = net(name)
    model.wide.requires_grad_(False)
    optimizer = build(name, model)
    before, later = model.wide.detach().clone(), model.square
    for step in range(6):
        draw(model, step)
        model.wide.grad = None
        if step == 2:
            later.requires_grad_(False)
            kept = later.detach().clone()
            held = {k: v.clone() for k, v in optimizer.state[later].items() if isinstance(v, torch.Tensor)}
        if step >= 2:
            later.grad = None
        optimizer.step()
    assert torch.equal(model.wide, before)
    assert not any(isinstance(v, torch.Tensor) for v in optimizer.state.get(model.wide, {}).values())
    assert torch.equal(later, kept)
    assert all(torch.equal(optimizer.state[later][k], v) for k, v in held.items())


@pytest.mark.parametrize("shape", [(1, 1), (400, 1), (1, 400), (3000, 2), (1,), ()])
@pytest.mark.parametrize("name", NAMES)
def test_odd_shapes(name, shape):
    if name in MATRICES_ONLY and len(shape) < 2:
        pytest.skip("takes matrices")
    parameter = nn.Parameter(torch.ones(shape))
    optimizer = registry.choose("optim", name)([{"params": [parameter], "lr": 1e-3}])
    for step in range(13):
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step)) if step != 4 else torch.zeros(shape)
        optimizer.step()
    assert parameter.isfinite().all()
    assert not torch.equal(parameter, torch.ones(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25, 3e19])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(name, bad):
    """The parameter and its state are what they would be had the gradient been missing; a gradient whose square is no float32 counts as such.

    torch's kernels count on the loop's guard.
    """
    model, spared = net(name), net(name)
    optimizer, other = build(name, model), build(name, spared)
    for step in range(6):
        draw(model, step)
        draw(spared, step)
        if step in (0, 3):
            model.wide.grad[1, 1] = bad
            spared.wide.grad = None
        optimizer.step()
        other.step()
    assert equal(model, spared)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_gradient_that_is_taken_leaves_finite_numbers(name):
    model = net(name)
    optimizer = build(name, model)
    for step in range(6):
        draw(model, step)
        if step in (0, 3):
            model.wide.grad[1, 1] = 1e18
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(v.isfinite().all() for held in optimizer.state.values() for v in held.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sgd_sai"])
def test_stacked_matrices_move_as_if_they_were_apart(name):
    made = torch.Generator().manual_seed(7)
    whole = torch.randn(48, 16, generator=made)
    rows = (24, 8, 16)
    stacked, apart = nn.Parameter(whole.clone()), [nn.Parameter(part.clone()) for part in whole.split(rows)]
    options = {k: v for k, v in SMALL.items() if k in registry.schema(registry.find("optim", name)).model_fields}
    choice = registry.choose("optim", {"name": name, **options})
    optimizers = choice([{"params": [stacked], "parts": [rows]}]), choice([{"params": apart, "parts": [()] * 3}])
    for _ in range(7):
        stacked.grad = torch.randn(48, 16, generator=made)
        for p, g in zip(apart, stacked.grad.split(rows), strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.cat(list(apart)), stacked, rtol=1e-5, atol=1e-6 if name != "muon" else 1e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sgd_sai"])
def test_experts_move_as_if_they_were_apart(name):
    """A weight of experts [experts, outputs, inputs] is as many matrices, each with those stacked in it; its state takes the bytes documented."""
    made = torch.Generator().manual_seed(7)
    experts = nn.Parameter(torch.randn(3, 32, 16, generator=made))
    apart = [nn.Parameter(part.detach().clone()) for expert in experts for part in expert.split((24, 8))]
    options = {k: v for k, v in SMALL.items() if k in registry.schema(registry.find("optim", name)).model_fields}
    choice = registry.choose("optim", {"name": name, **options})
    optimizers = choice([{"params": [experts], "parts": [(24, 8)]}]), choice([{"params": apart, "parts": [()] * 6}])
    for _ in range(7):
        experts.grad = torch.randn(3, 32, 16, generator=made)
        for p, g in zip(apart, [part for expert in experts.grad for part in expert.split((24, 8))], strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.cat(list(apart)), experts.flatten(0, 1), rtol=1e-5, atol=1e-6 if name != "muon" else 1e-3)
    if isinstance(optimizers[0], Rule):
        held = sum(v.nbytes for v in optimizers[0].state[experts].values() if isinstance(v, torch.Tensor))
        assert held == optimizers[0].state_bytes(experts.shape, 4, (24, 8))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_zeros_holds_nothing_back(name):
    """Experts without tokens and factors beside zeros begin with gradients of zero."""
    made = torch.Generator().manual_seed(3)
    weight, gradients = torch.randn(64, 48, generator=made), torch.randn(12, 64, 48, generator=made)
    options = {k: v for k, v in SMALL.items() if k in registry.schema(registry.find("optim", name)).model_fields}
    choice = registry.choose("optim", {"name": name, **options, "weight_decay": 0.0})
    way = []
    for zeros in ([], [0], [5]):
        parameter = nn.Parameter(weight.clone())
        optimizer = choice([{"params": [parameter]}])
        for step, gradient in enumerate(gradients):
            parameter.grad = torch.zeros_like(gradient) if step in zeros else gradient.clone()
            optimizer.step()
        way.append(float((parameter.detach() - weight).norm()))
    assert min(way[1:]) > 0.7 * way[0]


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_outlives_its_step(name):
    model = net(name)
    optimizer = build(name, model)
    steps(model, optimizer, range(2))
    alive = [StorageWeakRef(p.grad.untyped_storage()) for p in model.parameters()]
    optimizer.zero_grad(set_to_none=True)
    assert all(each.expired() for each in alive)


def test_quantised_states_in_any_elementwise_rule():
    """`states` is an option of a rule, not a method: Lion with a momentum in 8 and 4 bits stays near Lion."""
    finals = {}
    for states in ("full", "8bit", "4bit"):
        model = Net()
        optimizer = build("lion", model, states=states)
        steps(model, optimizer, range(10))
        finals[states] = model.wide.detach().clone()
        held = sum(v.numel() * v.element_size() for v in optimizer.state[model.wide].values())
        assert held == {"full": 4 * 4096, "8bit": 4096 + 4 * 16, "4bit": 2048 + 4 * 32}[states]
    start = Net().wide.detach()
    moved = (finals["full"] - start).norm()
    assert (finals["8bit"] - finals["full"]).norm() < 0.3 * moved
    assert (finals["4bit"] - finals["full"]).norm() < 0.8 * moved


@pytest.mark.parametrize("name", NAMES)
def test_groups_that_changed_since_the_checkpoint_are_refused_and_nothing_is_touched(name, tmp_path):
    model = net(name)
    optimizer = build(name, model)
    steps(model, optimizer, range(2))
    save(tmp_path, 2, model, optimizer)
    again = net(name, seed=1)
    fresh = build(name, again)
    first, last = fresh.param_groups[0], fresh.param_groups[-1]
    last["params"].append(first["params"].pop())
    before = [p.detach().clone() for p in again.parameters()]
    with pytest.raises(ArtifactError, match="groups the parameters"):
        restore(latest(tmp_path), again, [fresh])
    assert all(torch.equal(a, b) for a, b in zip(before, again.parameters(), strict=True))
    assert not fresh.state
