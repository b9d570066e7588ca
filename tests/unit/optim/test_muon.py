"""Muon: each matrix orthogonalised on its own, whatever it is stacked with."""

import itertools

import pytest
import torch

from bessemer.core import products
from bessemer.core.errors import RecipeError
from bessemer.optim._newton_schulz import _iterate, coefficients, orthogonalise
from bessemer.optim.muon import Muon


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 48), (2, 48, 16), (1, 1, 8), (1, 8, 1)])
def test_singular_values_end_near_one(shape):
    matrices = draw(*shape)
    found = orthogonalise(matrices, 5).float() / max(1.0, shape[1] / shape[2]) ** 0.5
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_direction_is_that_of_the_polar_factor():
    matrix = draw(1, 24, 40)
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    found = orthogonalise(matrix, 5)[0].float()
    alike = torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0)
    assert float(alike) > 0.98


def step(parameter, parts, gradient):
    optimizer = Muon([{"params": [parameter], "parts": [parts]}], lr=0.1, weight_decay=0.0)
    parameter.grad = gradient
    optimizer.step()
    return parameter.detach()


def test_stacked_matrices_move_as_if_each_stood_alone():
    gradient = draw(48, 16)
    stacked = step(torch.nn.Parameter(torch.zeros(48, 16)), (16, 16, 16), gradient)
    alone = [step(torch.nn.Parameter(torch.zeros(16, 16)), (), part) for part in gradient.split(16)]
    torch.testing.assert_close(stacked, torch.cat(alone))
    whole = step(torch.nn.Parameter(torch.zeros(48, 16)), (), gradient)
    assert float((whole - stacked).abs().max()) > 1e-3


def test_twenty_steps_equal_torchs_own():
    ours, theirs = torch.nn.Parameter(draw(24, 40)), torch.nn.Parameter(draw(24, 40))
    mine = Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1, steps=5, polynomial="published")
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.1, adjust_lr_fn="original")
    for number in range(20):
        ours.grad, theirs.grad = draw(24, 40, seed=number), draw(24, 40, seed=number)
        mine.step()
        reference.step()
    # torch iterates in bfloat16 whatever the machine, so the directions differ by its rounding and no more
    moved = (theirs.detach() - draw(24, 40)).norm()
    assert float((ours - theirs).detach().norm() / moved) < 0.02


def test_a_zero_gradient_moves_nothing_and_a_missing_one_is_passed_over():
    still, absent = torch.nn.Parameter(draw(8, 8)), torch.nn.Parameter(draw(8, 8))
    optimizer = Muon([{"params": [still, absent]}], lr=0.1, weight_decay=0.0)
    still.grad = torch.zeros(8, 8)
    optimizer.step()
    torch.testing.assert_close(still.detach(), draw(8, 8))
    torch.testing.assert_close(absent.detach(), draw(8, 8))


@pytest.mark.parametrize("shape", [(200, 200), (203, 430), (256, 1000)])
@pytest.mark.parametrize(("steps", "polynomial"), [(5, "published"), (4, "minimax"), (1, "minimax")])
def test_symmetric_products_and_the_gram_matrix_give_the_same_polynomials(shape, steps, polynomial):
    """The plain iteration in double precision, however the products are arranged; some singular values are tiny."""
    matrix = draw(*shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = (u * torch.logspace(-5, 0, len(values))) @ v
    wanted = (matrix / matrix.norm()).double()
    series = coefficients(steps, polynomial)
    for a, b, c in series:
        gram = wanted @ wanted.mT
        wanted = a * wanted + (b * gram + c * gram @ gram) @ wanted
    x = matrix / matrix.norm()
    for stretch, tall in itertools.product((1, 2, 3, steps), (False, True)):
        out = torch.zeros(shape[::-1] if tall else shape)
        rooms = torch.full((5, 1, shape[0], shape[0]), torch.nan), torch.full((2, 1, *shape), torch.nan)
        _iterate([x.mT.contiguous() if tall else 3.0 * x], series, [out], -1.0, stretch, rooms)
        out = out.mT if tall else out
        close = (
            5e-4 if stretch == 1 else 1e-3
        )  # two parts round to 2^-17; squares of singular values near 1e-5 are lost in the Gram matrix; torch itself rounds to 1e-2
        assert float((out.double() - wanted).norm() / wanted.norm()) < close, stretch
    found = orthogonalise(matrix[None], steps, polynomial)[0]
    rounded = x.bfloat16()
    for a, b, c in series:  # as torch.optim.Muon does it
        gram = rounded @ rounded.mT
        rounded = torch.addmm(rounded, torch.addmm(gram, gram, gram, beta=b, alpha=c), rounded, beta=a)
    allowed = 1e-3 if products.units() != "vectors" else 1.5 * float((rounded.double() - wanted).norm() / wanted.norm())
    assert float((found.double() - wanted).norm() / wanted.norm()) < allowed


def test_four_tuned_steps_are_nearer_to_orthogonal_than_five_published_ones():
    values = torch.logspace(-2.5, 0, 400, dtype=torch.float64)
    ends = {}
    for steps, polynomial in ((5, "published"), (4, "minimax")):
        x = values
        for a, b, c in coefficients(steps, polynomial):
            x = a * x + b * x**3 + c * x**5
        ends[polynomial] = float((x - 1).abs().max())
    assert ends["minimax"] < 0.21 < 0.3 < ends["published"] < 0.35


def test_a_gradient_that_is_not_finite_is_as_one_that_is_missing():
    parameter = torch.nn.Parameter(draw(8, 8))
    optimizer = Muon([{"params": [parameter]}], lr=0.1)
    parameter.grad = torch.full((8, 8), torch.nan)
    optimizer.step()
    assert torch.equal(parameter.detach(), draw(8, 8))
    assert not optimizer.state


@pytest.mark.parametrize("shape", [(8,), ()])
def test_what_is_no_matrix_is_refused_when_the_optimizer_is_made(shape):
    """Its first step would find out too, after the data was made."""
    group = {"params": [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(shape))], "names": ["w", "norm.weight"]}
    with pytest.raises(RecipeError, match=r"'norm.weight' is none") as caught:
        Muon([group])
    assert caught.value.key == "optim"
    assert 'role = "matrix"' in caught.value.mend
