"""Products many at a time: whole, transposed, added to, symmetric, in parts of float32."""

import pytest
import torch

from bessemer.core import products
from bessemer.core.products import Each, Product, Scratch, multiply, run
from bessemer.optim import _fused

SHAPES = [(1, 5, 1), (64, 200, 64), (192, 192, 192), (203, 60, 203), (260, 700, 260), (130, 1376, 77), (5, 9000, 33)]


def needs(units):
    """Vectors of bfloat16 are there wherever tiles are."""
    return pytest.mark.skipif(products.units() not in units, reason="the processor has none")


TILES, ANY = ("tiles",), ("tiles", "vectors")
WAYS = [pytest.param(units, id=units, marks=needs(of)) for units, of in (("tiles", TILES), ("vectors", ANY))] + ["torch"]
MISSED = {"tiles": {3: 1e-6, 2: 3e-5, 1: 1e-2}, "vectors": {3: 1e-6, 2: 1e-6, 1: 1e-2}, "torch": dict.fromkeys((1, 2, 3), 1e-6)}
"""How far a sum of products may lie off, in units of the root of the sum of squares, by bfloat16 parts."""


@pytest.fixture(params=WAYS)
def units(request, monkeypatch):
    """What multiplies."""
    if request.param == "torch":
        monkeypatch.setattr(products, "_library", lambda: None)
        yield request.param
        return
    monkeypatch.setattr(products, "ENOUGH", 0)
    library = products._library()
    library.ready(int(request.param == "tiles"))
    monkeypatch.setattr(products, "_tiles", request.param == "tiles")
    assert products.units() == request.param
    yield request.param
    library.ready(1)


def draw(*shape, seed=0):
    """Numbers over several orders of magnitude."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made) * torch.exp(torch.randn(*shape, generator=made))


def off(found, a, b, wanted):
    """The largest error, in units of what the terms' sizes explain."""
    scale = (a.double().square() @ b.double().square()).sqrt() + 1e-30
    return float(((found.double() - wanted) / scale).abs().max())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_layout_of_the_factors(units, shape, left, right):
    rows, depth, columns = shape
    a = draw(depth, rows).mT if left else draw(rows, depth)
    b = draw(columns, depth, seed=1).mT if right else draw(depth, columns, seed=1)
    before = draw(rows, columns, seed=2)
    for parts in (3, 2, 1):
        out, held = torch.full((rows, columns + 3), torch.nan)[:, :columns], before.clone()
        multiply([Product(a, b, out, parts=parts), Product(a, b, held, plus=held, beta=0.5, alpha=-2.0, parts=parts)])
        wanted = a.double() @ b.double()
        assert off(out, a, b, wanted) < MISSED[units][parts] * 10
        assert off((held.double() - 0.5 * before.double()) / -2.0, a, b, wanted) < MISSED[units][parts] * 20


def test_three_parts_are_at_least_as_near_as_torchs_float32(units):
    a, b = draw(256, 512), draw(512, 384, seed=1)
    wanted, out = a.double() @ b.double(), torch.empty(256, 384)
    multiply([Product(a, b, out)])
    multiply([])  # nothing to do changes nothing
    assert float((out - wanted).norm()) < 1.5 * float((a @ b - wanted).norm())


@pytest.mark.parametrize(("side", "length"), [(1, 5), (64, 200), (192, 192), (203, 60), (260, 700)])
def test_symmetric_ones_are_the_whole_product_and_exactly_symmetric(units, side, length):
    x, before = draw(side, length), draw(side, side, seed=1)
    before = before + before.mT
    out, held = torch.full((side, side), torch.nan), before.clone()
    multiply([Product(x, x.mT, out, symmetric=True), Product(x, x.mT, held, plus=held, beta=0.9, alpha=0.1, symmetric=True)])
    wanted = x.double() @ x.double().mT
    assert off(out, x, x.mT, wanted) < 1e-5
    assert off(held, x, x.mT, 0.9 * before.double() + 0.1 * wanted) < 1e-5
    if units != "torch" or side >= 192:
        size = 32 if units != "torch" else -(-side // 4)
        assert all(torch.equal(a[size:, :size], a[:size, size:].mT) for a in (out, held))


def test_a_chains_steps_hand_each_other_scratch_matrices(units):
    """Turned, moved by Adam in place, turned back and added: what single steps on tensors give, with as many chains as there are."""
    work, wanted, chains = [], [], []
    for seed, (rows, side, rank) in enumerate([(96, 64, 40), (33, 128, 7), (260, 200, 130)]):
        gradient, basis, weight, first = draw(rows, side, seed=seed), draw(side, rank), draw(rows, side + 5)[:, :side], draw(rows, rank, seed=9)
        second, low = first.square(), Scratch(1, rows, rank)
        m = first.double().lerp(gradient.double() @ basis.double(), 0.1)
        v = 0.9 * second.double() + 0.1 * (gradient.double() @ basis.double()).square()
        wanted.append((weight.double() * 0.5 + (-2.0 * m / (v.sqrt() + 1e-3)) @ basis.double().mT, m, v))
        each = Each(_fused._kernel("direct"), _fused._direct, (low, first, second), (0.1, 0.9, 0.1, 1e-3, -2.0))
        chains.append([Product(gradient, basis, low), each, Product(low, basis.mT, weight, plus=weight, beta=0.5)])
        work.append((weight, first, second))
    run(chains)
    for found, right in zip(work, wanted, strict=True):
        for x, y in zip(found, right, strict=True):
            assert float((x.double() - y).norm() / y.norm()) < 1e-5


@needs(ANY)
def test_the_number_of_threads_changes_nothing():
    a, b = draw(300, 500), draw(500, 400, seed=1)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = [torch.empty(300, 400), torch.empty(300, 300)]
            multiply([Product(a, b, out[0])])
            multiply([Product(a, a.mT, out[1], symmetric=True)])
            found.append(out)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


def test_the_precision_torch_is_told_is_kept(units):
    if units == "torch":
        pytest.skip("torch's own affair")
    a, b = draw(200, 200), draw(200, 200, seed=1)
    wanted, errors = a.double() @ b.double(), []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            out = torch.empty(200, 200)
            multiply([Product(a, b, out)])
            errors.append(float((out - wanted).norm() / wanted.norm()))
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors[0] < 1e-6 < errors[2] < 1e-2
    assert (1e-6 < errors[1] < 1e-4) if units == "tiles" else errors[1] == errors[0]  # vectors do all of float32 faster than two parts


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(units, bad):
    a, b = draw(130, 130), draw(130, 130, seed=1)
    a[3, 7] = bad
    out = torch.empty(130, 130)
    multiply([Product(a, b, out)])
    assert not out[3].isfinite().any()
    assert out[:3].isfinite().all()
    assert out[4:].isfinite().all()


tiled = needs(TILES)


def rounding(x):
    return x.detach().bfloat16().double()


@tiled
@pytest.mark.parametrize("leading", [(700,), (3, 333)])
def test_a_layers_product_and_its_gradients_are_those_of_factors_rounded_to_bfloat16(leading):
    x, weight, bias, grad = draw(*leading, 160), draw(200, 160, seed=1), draw(200, seed=2), draw(*leading, 200, seed=3)
    x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    with products.rounded():
        y = products.linear(x, weight, bias)
    y.backward(grad)  # the way back is the way there, wherever it is asked for
    flat, coming = rounding(x).flatten(0, -2), rounding(grad).flatten(0, -2)
    wanted = {
        "y": (y, (flat @ rounding(weight).T).view(*leading, 200) + bias.double()),
        "x": (x.grad, (coming @ rounding(weight)).view_as(x)),
        "weight": (weight.grad, coming.T @ flat),
        "bias": (bias.grad, grad.double().flatten(0, -2).sum(0)),
    }
    for name, (found, exact) in wanted.items():
        assert (found - exact).norm() < 2e-6 * exact.norm(), name
        assert found.is_contiguous(), name


@tiled
def test_compiled_it_is_the_same_to_the_bit():
    x, weight = draw(700, 160).requires_grad_(), draw(200, 160, seed=1).requires_grad_()
    compiled = torch.compile(lambda x, weight: products.linear(x, weight).relu())
    found = []
    with products.rounded():
        for way in (compiled, lambda x, weight: products.linear(x, weight).relu()):
            y = way(x, weight)
            found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@tiled
def test_gradients_have_gradients():
    x, weight, along = draw(700, 160).requires_grad_(), draw(200, 160, seed=1).requires_grad_(), draw(700, 160, seed=2)
    with products.rounded():
        y = products.linear(x, weight)
    (of_x,) = torch.autograd.grad(y.square().sum() / 2, x, create_graph=True)  # x W^T W
    (of_weight,) = torch.autograd.grad(of_x, weight, along)  # W (x^T a + a^T x)
    exact = weight.double() @ (x.double().T @ along.double() + along.double().T @ x.double())
    assert (of_weight - exact).norm() < 2e-2 * exact.norm()


@tiled
def test_only_large_products_that_may_are_rounded():
    x, weight = draw(700, 160), draw(200, 160, seed=1)
    exact = torch.nn.functional.linear(x, weight)
    assert torch.equal(products.linear(x, weight), exact)
    with products.rounded():
        assert not torch.equal(products.linear(x, weight), exact)
        assert torch.equal(products.linear(x[:9], weight), torch.nn.functional.linear(x[:9], weight))
        assert products.linear(x.double(), weight.double()).dtype == torch.float64
        with products.rounded(False):
            assert torch.equal(products.linear(x, weight), exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert products.linear(x, weight).dtype == torch.bfloat16
    assert torch.equal(products.linear(x, weight), exact)


@tiled
def test_adding_to_a_matrix_rounds_the_factors_but_not_the_sum():
    to, a, b = draw(200, 160), draw(700, 200, seed=1).T, draw(700, 160, seed=2)
    wanted = to.double() + rounding(a) @ rounding(b)
    with products.rounded():
        found = products.add_product(to, a, b)
    assert found is to
    assert (to - wanted).norm() < 2e-6 * wanted.norm()
