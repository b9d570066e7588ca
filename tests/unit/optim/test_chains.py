"""Updates done piece by piece in one core's cache are those of whole matrices by torch."""

import copy

import pytest
import torch

from bessemer.core import products, registry
from bessemer.optim import _native

WIDE_AND_TALL = [((300, 160), ()), ((160, 700), ()), ((512, 128), (256, 200, 56))]
SQUARE = [((160, 160), ())]
CASES = [
    ("galore", {"rank": 24}, WIDE_AND_TALL),
    ("galore", {"rank": 24, "weight_decay": 0.5, "scale": 1.0}, WIDE_AND_TALL),
    ("apollo", {"rank": 24}, WIDE_AND_TALL),
    ("apollo_mini", {"weight_decay": 0.5}, WIDE_AND_TALL),
    ("soap", {"every": 2}, WIDE_AND_TALL),
    ("soap", {"every": 2, "sides": "both"}, SQUARE),  # of others the longer side's basis is arbitrary where there is no gradient
]


def trained(name, options, shapes, steps=4):
    """The weights' changes."""
    made = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=made)) for shape, _ in shapes]
    begun = [p.detach().clone() for p in params]
    optimizer = registry.choose("optim", {"name": name, "lr": 0.01, **options})([{"params": params, "parts": [cut for _, cut in shapes]}])
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=made)
        optimizer.step()
    return [p.detach() - start for p, start in zip(params, begun, strict=True)]


@pytest.mark.skipif(not products.fast(), reason="torch multiplies here")
@pytest.mark.parametrize(("name", "options", "shapes"), CASES)
def test_pieces_in_chains_are_the_whole_by_torch(name, options, shapes, monkeypatch):
    monkeypatch.setattr(products, "ENOUGH", 0)
    whole = trained(name, options, shapes)
    monkeypatch.setattr("bessemer.optim._matrices.PIECE", 1 << 13)
    pieces = trained(name, options, shapes)
    assert all(map(torch.equal, whole, pieces))
    monkeypatch.setattr(products, "_library", lambda: None)
    monkeypatch.setattr(_native, "library", lambda: None)
    for x, y in zip(pieces, trained(name, options, shapes), strict=True):
        assert float((x - y).norm() / y.norm()) < 1e-2  # eigenvectors that lie close magnify what bases are made of


@pytest.mark.skipif(not products.fast(), reason="torch multiplies here")
@pytest.mark.parametrize(("name", "options"), [("galore", {"rank": 24}), ("apollo", {"rank": 24}), ("apollo_mini", {})])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_with_one_bad_number_in_one_of_its_matrices_is_left_alone(name, options, bad, monkeypatch):
    monkeypatch.setattr(products, "ENOUGH", 0)
    made = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=made)) for shape, _ in WIDE_AND_TALL]
    group = {"params": params, "parts": [cut for _, cut in WIDE_AND_TALL]}
    optimizer = registry.choose("optim", {"name": name, "refresh": 50, **options})([group])
    for step in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=made)
        if step == 2:
            params[2].grad[300, 7] = bad  # in the second of three
            before = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state[params[2]])
        optimizer.step()
        if step == 2:
            moved = [not torch.equal(p, old) for p, old in zip(params, before[0], strict=True)]
            assert moved == [True, True, False]
            after = optimizer.state[params[2]]
            assert after.keys() == before[1].keys()
            assert all(torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before[1].items())
    assert [optimizer.state[p]["step"] for p in params] == [4, 4, 3]
    assert all(p.isfinite().all() for p in params)
