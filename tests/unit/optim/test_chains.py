"""Updates done piece by piece in one core's cache are those of whole matrices by torch."""

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


@pytest.mark.skipif(not products.fast(), reason="no tile units here")
@pytest.mark.parametrize(("name", "options", "shapes"), CASES)
def test_pieces_on_tiles_are_the_whole_by_torch(name, options, shapes, monkeypatch):
    monkeypatch.setattr(products, "ENOUGH", 0)
    whole = trained(name, options, shapes)
    monkeypatch.setattr("bessemer.optim._rule.PIECE", 1 << 13)
    pieces = trained(name, options, shapes)
    assert all(map(torch.equal, whole, pieces))
    monkeypatch.setattr(products, "_library", lambda: None)
    monkeypatch.setattr(_native, "library", lambda: None)
    for x, y in zip(pieces, trained(name, options, shapes), strict=True):
        assert float((x - y).norm() / y.norm()) < 1e-2  # eigenvectors that lie close magnify what bases are made of
