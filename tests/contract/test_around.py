"""Every method around the optimizers continues bit by bit from a checkpoint, with its averages, and leaves frozen parameters alone."""

import pytest
import torch

from bessemer.core import registry
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import latest
from bessemer.train.checkpoint_state import restore, state_of
from tests.unit.optim.test_around import Toy

NAMES = registry.names("optim/around")
SMALL = {
    "lisa": {"layers": 1, "every": 3},
    "lawa": {"latest": 2, "every": 2},
    "lcsc": {"latest": 3, "every": 2, "trials": 10, "times": 3},
    "deep_zero": {"keep": 0.002, "directions": 2, "radius": 1e-2},
    "tract": {"match": "embed.weight"},
    "qk_clip": {"limit": 0.3},
    "noise_scale": {"every": 2},
    "ema": {"decay": 0.9},
}


def toy(name, seed=0, optim="adamw"):
    return Toy([optim], [{"name": name, **SMALL.get(name, {})}], steps=12, seed=seed, width=16, heads=2, ffn=16)


def measured(made):
    with made.optimizers.averaged():
        return made.values()


@pytest.mark.parametrize("name", NAMES)
def test_continues_from_a_checkpoint_bit_by_bit(name, tmp_path):
    whole = toy(name)
    for _ in range(5):
        whole.step()
    saver = Checkpointer(tmp_path)
    tensors, plain = state_of(whole.model, whole.optimizers.optimizers)
    saver.save(5, tensors, {**plain, "progress": whole.progress.as_dict()})
    saver.wait()
    for _ in range(6):
        whole.step()
    again = toy(name, seed=1)
    found = restore(latest(tmp_path), again.model, again.optimizers.optimizers)
    for key, value in found["progress"].items():
        setattr(again.progress, key, value)
    for _ in range(6):
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.values().values(), again.values().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(measured(whole).values(), measured(again).values(), strict=True))
    assert whole.progress == again.progress


@pytest.mark.parametrize("saved", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_goes_back_to_a_checkpoint_bit_by_bit(name, saved, tmp_path):
    """As the guard does, in the middle of a run; nothing that was first counted after the save stays."""
    made = toy(name)
    for _ in range(saved):
        made.step()
    saver = Checkpointer(tmp_path)
    tensors, plain = state_of(made.model, made.optimizers.optimizers)
    saver.save(saved, tensors, {**plain, "progress": made.progress.as_dict()})
    saver.wait()
    ways = []
    for _ in range(2):
        for _ in range(5):
            made.step()
        ways.append((measured(made), made.values()))
        for key, value in restore(latest(tmp_path), made.model, made.optimizers.optimizers)["progress"].items():
            setattr(made.progress, key, value)
        measured(made)
    for once, again in zip(*ways, strict=True):
        assert all(torch.equal(once[key], value) for key, value in again.items())


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_to_hold_the_numbers_it_says(name):
    """Which the dry run counts."""
    made = toy(name)
    for _ in range(8):
        made.step()
    method = made.optimizers.around[0]
    held = sum(value.numel() for state in method.state.values() for value in state.values() if isinstance(value, torch.Tensor) and value.ndim)
    assert held == method.copies * sum(p.numel() for p in method.names)


@pytest.mark.parametrize("name", NAMES)
def test_a_retried_step_is_the_same_step(name):
    """The guard may ask for a step's gradient again, or drop it: nothing that `prepare` found may have stayed."""
    once, twice = toy(name), toy(name)
    for made in (once, twice):
        for _ in range(3):
            made.step()
    before = twice.values()
    twice.backward()
    twice.optimizers.zero_grad()
    assert all(torch.equal(before[n], v) for n, v in twice.values().items())
    for made in (once, twice):
        for _ in range(3):
            made.step()
    assert all(torch.equal(a, b) for a, b in zip(measured(once).values(), measured(twice).values(), strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "tract"])
def test_frozen_parameters_stay(name):
    import bessemer.train.optimizers as optimizers
    from bessemer.models.transfer import parameter_roles

    made = toy(name)
    made.model.head.weight.requires_grad_(False)
    chosen = [registry.choose("optim", "adamw")]
    beside = [registry.choose("optim/around", {"name": name, **SMALL.get(name, {})}, optimizers.TAGS)]
    made.optimizers = optimizers.build(made.model, chosen, parameter_roles(made.model), beside)
    before = made.values()
    for _ in range(4):
        made.step()
    after = measured(made)
    assert torch.equal(before["head.weight"], after["head.weight"])
    assert not torch.equal(before["blocks.0.mlp.down.weight"], made.values()["blocks.0.mlp.down.weight"]) or name in ("lisa", "deep_zero")


@pytest.mark.parametrize("name", NAMES)
def test_composes_with_every_kind_of_optimizer(name):
    """A sign, an orthogonalised and a projected update beside it: finite weights that moved."""
    for optim in ("lion", "galore"):
        made = toy(name, optim={"name": optim, **({"rank": 4} if optim == "galore" else {})})
        before = made.values()
        for _ in range(3):
            made.step()
        assert all(value.isfinite().all() for value in made.values().values())
        assert any(not torch.equal(before[n], v) for n, v in made.values().items())
