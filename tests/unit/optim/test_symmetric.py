"""Products known to be symmetric, of which half is computed."""

import pytest
import torch

from bessemer.optim._newton_schulz import symmetric


@pytest.mark.parametrize(("side", "length"), [(1, 5), (64, 200), (192, 192), (203, 60), (260, 700)])
def test_it_is_the_whole_product_and_exactly_symmetric(side, length):
    draw = torch.Generator().manual_seed(side)
    x, before = torch.randn(side, length, generator=draw), torch.randn(side, side, generator=draw)
    before = before + before.mT
    out = torch.full((side, side), torch.nan)
    symmetric(x, x.mT, out)
    torch.testing.assert_close(out, x @ x.mT, rtol=1e-4, atol=1e-4)
    held = before.clone()
    symmetric(x, x.mT, held, plus=held, beta=0.9, alpha=0.1)
    torch.testing.assert_close(held, 0.9 * before + 0.1 * x @ x.mT, rtol=1e-4, atol=1e-4)
    if side >= 192:
        size = -(-side // 4)
        assert all(torch.equal(a[size:, :size], a[:size, size:].mT) for a in (out, held))
