"""Shampoo between two times that it finds eigenvectors."""

import pytest
import torch
from torch import nn

from bessemer.core import registry


def moves(gradients, **options):
    """The weight's steps under these gradients, at rate 1."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = registry.choose("optim", {"name": "shampoo", "lr": 1.0, **options})([{"params": [weight]}])
    steps = []
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        steps.append(weight.detach() - before)
    return steps


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"most": 12}])
def test_old_eigenvectors_are_as_good_as_new_where_they_stay(options):
    made = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, side, generator=made))[0] for side in (12, 20))
    gradients = [left @ torch.diag(torch.rand(12, generator=made) + 0.1) @ right[:12] for _ in range(6)]
    for old, new in zip(moves(gradients, every=100, **options), moves(gradients, every=1, **options), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [1, 100])
def test_a_gradient_from_a_new_side_takes_no_step_without_bound(every):
    """No number of a step, turned to the eigenvectors, can be above 1, since the sums hold its own square."""
    small, large = torch.zeros(12, 20), torch.zeros(12, 20)
    small[0, 0], large[1, 1] = 1e-4, 10.0
    assert float(moves([small, large], every=every)[1].norm()) < 1.01
