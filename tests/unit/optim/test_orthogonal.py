"""`_orthogonal.c`: matrices through all their steps in bfloat16, with the momentum and the decay around them."""

import pytest
import torch

from bessemer.core import products
from bessemer.optim._newton_schulz import Momentum, coefficients, subtract_orthogonal

SHAPES = [(192, 192), (192, 512), (512, 192), (203, 430), (430, 203), (200, 1000)]
RATE, KEEP = 0.3, 0.9


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def vectors(monkeypatch):
    """They are there wherever tiles are."""
    if products.units() is None:
        pytest.skip("the processor has no vectors of bfloat16")
    monkeypatch.setattr(products, "_tiles", False)


def exact(matrix, steps):
    x = matrix.double() / matrix.double().norm()
    for a, b, c in coefficients(steps, "minimax"):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def torchs(matrix, steps):
    """Rounded as torch.optim.Muon rounds."""
    x = matrix.bfloat16() / matrix.norm().bfloat16()
    x = x.mT if x.shape[0] > x.shape[1] else x
    for a, b, c in coefficients(steps, "minimax"):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).double() * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def far(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def inside(matrix):
    """The same in the middle of a larger one, as query, key and value lie, and what surrounds it."""
    around = torch.full((matrix.shape[0] + 2, matrix.shape[1] + 3), 7.0)
    around[1:-1, 1:-2] = matrix
    return around[1:-1, 1:-2], around


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_near_to_the_polynomials_as_torchs_rounding(shape, count):
    matrices = [draw(*shape, seed=n) * 10.0 ** (3 * n - 6) for n in range(count)]
    places = [torch.zeros(shape) for _ in matrices]
    subtract_orthogonal(places, [m.clone() for m in matrices], -1.0, 4)
    for place, matrix in zip(places, matrices, strict=True):
        assert far(place, exact(matrix, 4)) < 1.2 * far(torchs(matrix, 4), exact(matrix, 4))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_takes_the_gradient_in_and_the_place_decays(shape, nesterov):
    momentum = Momentum(0.95, nesterov)
    slopes, means, places = ([draw(*shape, seed=10 * kind + n) for n in range(3)] for kind in range(3))
    later = [m.clone() for m in means]
    moving = momentum.take([s.clone() for s in slopes], later)
    kept, surroundings = zip(*map(inside, means), strict=True)
    moved, edges = zip(*map(inside, places), strict=True)
    subtract_orthogonal(list(moved), slopes, RATE, 4, keep=KEEP, means=list(kept), momentum=momentum)
    for n in range(3):
        torch.testing.assert_close(kept[n], later[n])
        change = (KEEP * places[n].double() - moved[n]) / RATE
        assert far(change, exact(moving[n], 4)) < 0.04
        for around in (surroundings[n], edges[n]):
            assert float(torch.cat([around[0], around[-1], around[:, 0], around[:, -1], around[:, -2]]).sub(7.0).abs().max()) == 0.0


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_number_of_threads_changes_nothing(count):
    matrices, before, found = [draw(203, 430, seed=n) for n in range(count)], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            places = [torch.zeros(203, 430) for _ in matrices]
            subtract_orthogonal(places, matrices, RATE, 4)
            found.append(torch.stack(places))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_zeros_stay_and_numbers_that_lie_otherwise_are_left_to_torch():
    place = draw(200, 300)
    subtract_orthogonal([place], [torch.zeros(200, 300)], RATE, 4, keep=KEEP)
    torch.testing.assert_close(place, KEEP * draw(200, 300))
    standing, matrix = draw(300, 200).mT, draw(200, 300, seed=1)
    subtract_orthogonal([standing], [matrix], -RATE, 4)
    assert far((standing - draw(300, 200).mT) / RATE, exact(matrix, 4)) < 1e-3
