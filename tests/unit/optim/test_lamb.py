"""LAMB's kernel does what its torch operations do, whoever does it."""

import pytest
import torch

from bessemer.core import registry
from bessemer.optim import _fused, _native

SHAPES = {
    "wide": ((300, 200), ()),
    "stacked": ((96, 64), (64, 16, 16)),
    "experts": ((3, 24, 16), (12, 12)),
    "zeros": ((8, 8), ()),
    "vector": ((70,), ()),
}


def trained(steps=4, **options):
    draw = torch.Generator().manual_seed(3)
    made = {name: torch.nn.Parameter(torch.randn(shape, generator=draw) * (name != "zeros")) for name, (shape, _) in SHAPES.items()}
    optimizer = registry.choose("optim", {"name": "lamb", "lr": 0.1, **options})(
        [{"params": list(made.values()), "parts": [p for _, p in SHAPES.values()]}]
    )
    for _ in range(steps):
        for parameter in made.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in made.items()}


@pytest.mark.skipif(_native.library() is None, reason="no compiler")
@pytest.mark.parametrize("options", [{}, {"most": 2.0}, {"correct": False, "weight_decay": 0.0}])
def test_the_kernel_is_the_rule(options, monkeypatch):
    found = trained(**options)
    monkeypatch.setattr(_fused, "_reaching", lambda *tensors: None)
    for name, value in trained(**options).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")


def test_the_number_of_threads_changes_nothing():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(trained())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)
