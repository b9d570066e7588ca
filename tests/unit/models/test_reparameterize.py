"""Each method against its published formula, written out by hand, on shapes that nothing divides."""

import math

import pytest
import torch
from torch.nn import functional as F

from bessemer.core import registry
from bessemer.core.errors import TrainingError
from bessemer.core.progress import Progress
from bessemer.models.layers.linear import Linear
from bessemer.models.reparameterize.bone import BoneMatrix
from bessemer.models.reparameterize.dora import DoRAMatrix
from bessemer.models.reparameterize.lora import LoRAMatrix
from bessemer.models.reparameterize.lost import LOSTMatrix
from bessemer.models.reparameterize.pissa import PiSSAMatrix
from bessemer.models.reparameterize.refactorize import RefactorizedMatrix
from bessemer.models.reparameterize.relora import ReLoRAMatrix
from bessemer.models.reparameterize.sltrain import SLTrainMatrix
from bessemer.models.reparameterize.sparse_spectral import SpectralMatrix
from bessemer.models.reparameterize.ssf import SSFMatrix
from bessemer.models.reparameterize.switch_lora import SwitchLoRAMatrix
from bessemer.models.reparameterized import KIND, Matrix, Place, Reparameterized, matrices, reparameterize
from bessemer.train.optimizers import Optimizers

SHAPES = [(13, 7), (7, 13), (12, 12), (1, 5)]
FIXED = Progress(step=1, steps=100)


def weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def place(seed=0, name="layer.0"):
    return Place(name, ("ffn", "embed"), False, seed)


def shaken(matrix, scale=0.3):
    """The matrix with every trained parameter moved, so that nothing is zero."""
    with torch.no_grad():
        for number, parameter in enumerate(matrix.parameters()):
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=parameter.dtype)
    return matrix


def computes(matrix, expected, bias=None):
    """Composed and applied are both x W^T + b for the expected W."""
    torch.testing.assert_close(matrix.composed(), expected, rtol=1e-5, atol=1e-6)
    x = weight((3, 2, matrix.inputs), seed=9)
    shift = matrix.composed_bias(bias)
    torch.testing.assert_close(matrix(x, bias), F.linear(x, expected, shift), rtol=1e-5, atol=1e-5)


def trained(matrix):
    return sum(p.numel() for p in matrix.parameters() if p.requires_grad)


def adam(matrix, updates=2):
    """An AdamW over the matrix that has taken some steps, held as the loop holds it."""
    optimizer = torch.optim.AdamW([p for p in matrix.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    x = weight((5, matrix.inputs), seed=4).to(next(matrix.parameters()).dtype)
    for _ in range(updates):
        matrix(x, None).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return Optimizers([optimizer])


@pytest.mark.parametrize("shape", SHAPES)
def test_lora(shape):
    matrix = shaken(LoRAMatrix(weight(shape), place(), rank=3, alpha=6.0))
    rank = min(3, *shape)
    assert (matrix.left.shape, matrix.right.shape) == ((shape[0], rank), (rank, shape[1]))
    computes(matrix, weight(shape) + 6.0 / 3 * (matrix.left @ matrix.right), weight((shape[0],), 5))
    assert trained(matrix) == rank * (shape[0] + shape[1])
    assert not LoRAMatrix(weight(shape), place(), rank=3, alpha=6.0).left.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_dora(shape):
    bias = weight((shape[0],), 5)
    matrix = shaken(DoRAMatrix(weight(shape), place(), rank=2, alpha=2.0))
    direction = weight(shape) + 2.0 / 2 * (matrix.left @ matrix.right)
    norms = torch.stack([row.square().sum().sqrt() for row in direction])
    computes(matrix, torch.stack([m / n * row for m, n, row in zip(matrix.magnitude, norms, direction, strict=True)]), bias)
    assert trained(matrix) == shape[0] + min(2, *shape) * sum(shape)
    x = weight((4, shape[1]), 3)
    matrix(x, bias).square().sum().backward()
    left, right = matrix.left.detach().requires_grad_(), matrix.right.detach().requires_grad_()
    y = F.linear(x, (matrix.magnitude / norms).detach()[:, None] * (weight(shape) + left @ right), bias)  # |V| a constant: section 4.3
    y.square().sum().backward()
    torch.testing.assert_close(matrix.left.grad, left.grad)
    torch.testing.assert_close(matrix.right.grad, right.grad)


def test_dora_keeps_rows_of_zeros():
    matrix = DoRAMatrix(torch.zeros(3, 4), place(), rank=2, alpha=2.0)
    assert matrix(torch.ones(1, 4), None).equal(torch.zeros(1, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_pissa(shape):
    original, rank = weight(shape).float(), min(3, *shape)
    matrix = PiSSAMatrix(original, place(), rank=3)
    left, values, right = torch.linalg.svd(original, full_matrices=False)
    principal = sum(values[i] * torch.outer(left[:, i], right[i]) for i in range(rank))
    torch.testing.assert_close(matrix.left @ matrix.right, principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matrix.base, original - principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matrix.left.square().sum(0), values[:rank])  # both factors carry the roots
    torch.testing.assert_close(matrix.right.square().sum(1), values[:rank])
    assert trained(matrix) == rank * sum(shape)


@pytest.mark.parametrize("guide", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bone(shape, guide):
    size, original = 4, weight(shape)
    matrix = shaken(BoneMatrix(original, place(), rank=size, guide=guide))
    rows, columns = math.ceil(shape[0] / size), math.ceil(shape[1] / size)
    filled = torch.zeros(rows * size, columns * size, dtype=original.dtype)
    filled[: shape[0], : shape[1]] = original
    for i in range(rows):
        small = matrix.blocks[i * size : (i + 1) * size].detach()
        for j in range(columns):
            block = filled[i * size : (i + 1) * size, j * size : (j + 1) * size]
            block += block @ small + small if guide else small
    computes(matrix, filled[: shape[0], : shape[1]], weight((shape[0],), 5))
    assert trained(matrix) == rows * size * size


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_ssf(shape, with_bias):
    bias = weight((shape[0],), 5) if with_bias else None
    matrix = shaken(SSFMatrix(weight(shape), place(), shift=True))
    x = weight((4, shape[1]), 3)
    features = F.linear(x, weight(shape), bias)
    torch.testing.assert_close(matrix(x, bias), matrix.scale * features + matrix.shift)
    computes(matrix, torch.diag(matrix.scale) @ weight(shape), bias)
    assert trained(matrix) == 2 * shape[0]
    assert SSFMatrix(weight(shape), place(), shift=False).composed_bias(None) is None


@pytest.mark.parametrize("shape", [(13, 7), (40, 24)])
def test_sltrain(shape):
    matrix = shaken(SLTrainMatrix(weight(shape), place(), rank=3, density=0.1, alpha=6.0))
    count = int(0.1 * shape[0] * shape[1])
    expected = 6.0 / 3 * (matrix.left @ matrix.right)
    expected = expected.detach()
    assert len(set(matrix.places.tolist())) == count == matrix.values.numel()
    for at, value in zip(matrix.places.tolist(), matrix.values.tolist(), strict=True):
        expected[at // shape[1], at % shape[1]] += value
    computes(matrix, expected, weight((shape[0],), 5))
    x = weight((2, 3, shape[1]), 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: matrix(x, None), (x, matrix.left, matrix.right, matrix.values))
    assert trained(matrix) == 3 * sum(shape) + count


def test_sltrains_support_is_spread_evenly_and_drawn_for_each_matrix():
    whole = torch.zeros(40 * 24)
    for number in range(200):
        whole[SLTrainMatrix(weight((40, 24)), place(name=f"layer.{number}"), rank=3, density=0.1, alpha=6.0).places] += 1
    assert whole.sum() == 200 * 96
    assert whole.min() > 4  # 20 expected, standard deviation 4.2
    assert whole.max() < 40


def test_sltrains_weights_and_state_take_the_papers_bytes():
    n, m, rank, density, width = 64, 48, 8, 0.05, 4
    matrix = SLTrainMatrix(weight((n, m)).float(), place(), rank=rank, density=density, alpha=8.0)
    optimizers = adam(matrix)
    held = sum(t.numel() * t.element_size() for t in [*matrix.parameters(), *matrix.buffers()])
    state = sum(v.numel() * v.element_size() for o in optimizers.optimizers for s in o.state.values() for k, v in s.items() if k != "step")
    entries = int(density * n * m)
    assert held + state == 3 * width * (rank * (n + m) + entries) + 8 * entries
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        matrix(torch.randn(5, m), None)
    assert (n, m) not in [tuple(shape) for shape in kept]  # the dense weight is not held for the backward pass


@pytest.mark.parametrize("shape", [(13, 7), (7, 13), (12, 12)])
def test_lost(shape):
    original = weight(shape).float()
    matrix = LOSTMatrix(original, place(), rank=3, density=0.3, gamma=0.6)
    left, values, right = torch.linalg.svd(original, full_matrices=False)
    dominant = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    norms = (original - dominant).square().sum(0)
    chosen = sorted(norms.argsort(descending=True)[: round(0.3 * shape[1])].tolist())
    assert matrix.channels.tolist() == chosen
    torch.testing.assert_close(matrix.left @ matrix.right, dominant, rtol=1e-4, atol=1e-5)
    assert matrix.columns.equal(original[:, chosen])
    shaken(matrix)
    x = torch.randn(4, shape[1])
    y = 0.6 * (x @ matrix.right.T @ matrix.left.T) + 0.4 * (x[:, chosen] @ matrix.columns.T)
    torch.testing.assert_close(matrix(x, None), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x @ matrix.composed().T, y, rtol=1e-4, atol=1e-5)
    assert trained(matrix) == 3 * sum(shape) + shape[0] * len(chosen)


@pytest.mark.parametrize("prune", [0.9, 1.0])
def test_relora_merges_begins_anew_and_prunes_the_state(prune):
    matrix = shaken(ReLoRAMatrix(weight((30, 20)).float(), place(), rank=4, alpha=8.0, every=3, prune=prune))
    optimizers = adam(matrix)
    before, first = matrix.composed().clone(), matrix.right.clone()
    for _ in range(2):
        matrix.after_step(FIXED, optimizers)
    assert matrix.right.equal(first)  # not due
    matrix.after_step(FIXED, optimizers)
    torch.testing.assert_close(matrix.composed(), before)
    torch.testing.assert_close(matrix.base, before)
    assert not matrix.left.any()
    assert not torch.isclose(matrix.right, first).any()
    assert float(matrix.right.detach().std()) == pytest.approx((3 * 20) ** -0.5, rel=0.2)
    for parameter in (matrix.left, matrix.right):
        state = optimizers.entries(parameter)
        if prune == 1.0:
            assert state == []
        else:
            assert [int((s != 0).sum()) for s in state] == [round(0.1 * parameter.numel())] * 2


def test_relora_keeps_the_state_where_the_mean_is_largest():
    matrix = shaken(ReLoRAMatrix(weight((30, 20)).float(), place(), rank=4, alpha=8.0, every=1, prune=0.75))
    optimizers = adam(matrix)
    old = [state.clone() for state in optimizers.entries(matrix.left)]
    matrix.after_step(FIXED, optimizers)
    mean, square = optimizers.entries(matrix.left)
    kept = mean != 0
    assert old[0][kept].abs().min() >= old[0][~kept].abs().max()
    assert kept.equal(square != 0)
    for was, now in zip(old, (mean, square), strict=True):
        assert now[kept].equal(was[kept])


def test_relora_moves_nothing_far_after_a_restart():
    """A's gradient is zero while B is, so that what is kept of its state decides alone how far Adam moves it."""
    matrix = shaken(ReLoRAMatrix(weight((300, 200)).float(), place(), rank=8, alpha=8.0, every=5, prune=0.9))
    optimizers = Optimizers([torch.optim.Adam([matrix.left, matrix.right], lr=1e-3)])
    drawn = torch.Generator().manual_seed(0)
    for step in range(11):
        before = matrix.right.detach().clone()
        for p in (matrix.left, matrix.right):
            scale = torch.rand(p.shape, generator=drawn) ** 4
            p.grad = torch.randn(p.shape, generator=drawn) * scale * (0.0 if p is matrix.right and step % 5 == 0 else 1.0)
        optimizers.step()
        assert float((matrix.right.detach() - before).abs().max()) < 0.02
        matrix.after_step(FIXED, optimizers)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_refactorize_balances_the_factors_and_drops_their_state(shape):
    matrix = RefactorizedMatrix(weight(shape).float(), place(), rank=4, every=2)
    left, values, right = torch.linalg.svd(weight(shape).float(), full_matrices=False)
    torch.testing.assert_close(matrix.composed(), left[:, :4] @ torch.diag(values[:4]) @ right[:4], rtol=1e-4, atol=1e-5)
    shaken(matrix)
    optimizers = adam(matrix)
    before = matrix.composed().clone()
    matrix.after_step(FIXED, optimizers)
    assert optimizers.entries(matrix.left)
    matrix.after_step(FIXED, optimizers)
    torch.testing.assert_close(matrix.composed(), before, rtol=1e-4, atol=1e-5)
    values = torch.linalg.svdvals(before)[:4]
    torch.testing.assert_close(matrix.left.T @ matrix.left, torch.diag(values), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matrix.right @ matrix.right.T, torch.diag(values), rtol=1e-4, atol=1e-4)
    assert optimizers.entries(matrix.left) == optimizers.entries(matrix.right) == []
    assert trained(matrix) == 4 * sum(shape)


def switching(shape=(30, 20), **options):
    given = {"rank": 6, "alpha": 1.0, "interval": 3.0, "decay": 0.1, "hold": 4} | options
    return SwitchLoRAMatrix(weight(shape).float(), place(), **given)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_switch_lora_exchanges_vectors_and_changes_no_output(shape):
    matrix = switching(shape)
    torch.testing.assert_close(matrix.composed(), weight(shape).float(), rtol=1e-5, atol=1e-6)
    gain, (m, n), r = math.sqrt(1 / 3), shape, 6
    assert float(matrix.left.detach().abs().max()) <= math.sqrt(3) * (r / math.sqrt(m * n)) ** 0.25 * gain**0.5
    assert float(matrix.right.detach().std()) == pytest.approx((math.sqrt(m) * r / n**1.5) ** 0.25 * gain**0.5, rel=0.15)
    assert matrix.spare_left.shape == (20 - 6, m)
    optimizers = adam(matrix)
    before, left, right = matrix.composed().clone(), matrix.left.clone(), matrix.right.clone()
    spare = matrix.spare_left.clone()
    matrix.after_step(Progress(step=0, steps=100), optimizers)
    torch.testing.assert_close(matrix.composed(), before, rtol=1e-4, atol=1e-5)
    fresh = [k for k in range(6) if not matrix.left[:, k].equal(left[:, k])]
    rows = [k for k in range(6) if not matrix.right[k].equal(right[k])]
    assert len(fresh) == len(rows) == 2  # 6 / 3 at the beginning
    assert not set(fresh) & set(rows)  # what is held still does not leave
    assert all(any(matrix.left[:, k].equal(s) for s in spare) for k in fresh)
    assert all(any(left[:, k].equal(s) for s in matrix.spare_left) for k in fresh)  # and may come back
    assert matrix.still_right.nonzero().flatten().tolist() == fresh
    assert matrix.still_left.nonzero().flatten().tolist() == rows
    for state in optimizers.entries(matrix.right):
        assert [k for k in range(6) if not state[k].any()] == fresh
    for state in optimizers.entries(matrix.left):
        assert [k for k in range(6) if not state[:, k].any()] == rows


def test_switch_lora_holds_the_counterpart_still_for_its_updates():
    matrix = switching(interval=1e9, hold=2)  # nothing more is exchanged
    matrix.still_right[3] = 2
    x = torch.randn(5, 20)
    for expected in (True, True, False):
        matrix.zero_grad()
        matrix(x, None).square().sum().backward()
        assert (not matrix.right.grad[3].any()) == expected
        assert matrix.right.grad[2].any()
        assert matrix.left.grad.any(0).all()
        matrix.after_step(FIXED, Optimizers([]))


def test_switch_lora_exchanges_ever_fewer():
    def exchanged(fraction):
        matrix, total = switching((64, 64), rank=8, interval=4.0, hold=0), 0
        for _ in range(200):
            before = matrix.left.clone()
            matrix.after_step(Progress(step=int(fraction * 1000), steps=1000), Optimizers([]))
            total += int((matrix.left != before).any(0).sum())
        return total / 200

    assert exchanged(0.0) == pytest.approx(8 / 4, rel=0.05)
    assert exchanged(0.1) == pytest.approx(8 / 4 * 0.3, rel=0.2)
    assert exchanged(0.2) == pytest.approx(8 / 4 * 0.09, rel=0.4)


def test_switch_lora_refuses_optimizers_without_a_state_for_each_number():
    matrix = switching()
    choice = registry.choose("optim", {"name": "galore", "rank": 2})
    optimizer = choice([{"params": [p for p in matrix.parameters() if p.requires_grad], "lr": 1e-3}])
    matrix(torch.randn(5, 20), None).square().sum().backward()
    optimizer.step()
    with pytest.raises(TrainingError, match="keeps none for each number"):
        matrix.after_step(FIXED, Optimizers([optimizer]))


@pytest.mark.parametrize("shape", [(13, 7), (7, 13), (12, 12)])
def test_sparse_spectral_gives_every_value_and_the_drawn_vectors_their_gradient(shape):
    original = weight(shape).float()
    matrix = SpectralMatrix(original, place(), rank=3, every=2, draws=2)
    torch.testing.assert_close(matrix.composed(), original, rtol=1e-4, atol=1e-5)
    x, upper = torch.randn(5, shape[1]).requires_grad_(), torch.randn(5, shape[0])
    y = matrix(x, None)
    torch.testing.assert_close(y, x @ original.T, rtol=1e-4, atol=1e-5)
    y.backward(upper)
    slope = upper.T @ x.detach()  # dL/dW
    torch.testing.assert_close(x.grad, upper @ original, rtol=1e-4, atol=1e-5)
    left, right = torch.cat((matrix.left, matrix.held_left), 1), torch.cat((matrix.right, matrix.held_right))
    expected = torch.stack([left[:, i] @ slope @ right[i] for i in range(min(shape))])
    torch.testing.assert_close(matrix.values.grad, expected, rtol=1e-4, atol=1e-4)
    for i in range(3):
        torch.testing.assert_close(matrix.left.grad[:, i], slope @ right[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(matrix.right.grad[i], slope.T @ left[:, i], rtol=1e-4, atol=1e-4)
    assert trained(matrix) == min(shape) + 3 * sum(shape)


def test_sparse_spectral_keeps_vectors_at_norm_one_draws_others_and_decomposes_anew():
    matrix = SpectralMatrix(weight((30, 20)).float(), place(), rank=4, every=3, draws=2)
    optimizers = adam(matrix)
    with torch.no_grad():
        matrix.left *= 1.3
        matrix.values[5] = -0.1
    matrix.after_step(FIXED, optimizers)
    torch.testing.assert_close(matrix.left.square().sum(0), torch.ones(4))
    assert matrix.values.min() == 0.0
    before, values = matrix.composed().clone(), matrix.values.clone()
    moments = [state.clone() for state in optimizers.entries(matrix.values)]
    matrix.after_step(FIXED, optimizers)
    matrix.after_step(FIXED, optimizers)  # the third: a draw
    torch.testing.assert_close(matrix.composed(), before, rtol=1e-4, atol=1e-5)
    order = [values.tolist().index(v) for v in matrix.values.tolist()]
    assert sorted(order) == list(range(20))
    assert order != list(range(20))
    for was, now in zip(moments, optimizers.entries(matrix.values), strict=True):
        assert now.equal(was[order])  # a value's state goes with it
    assert optimizers.entries(matrix.left) == optimizers.entries(matrix.right) == []
    for _ in range(3):
        matrix.after_step(FIXED, optimizers)  # the sixth ends a round of two draws
    torch.testing.assert_close(matrix.composed(), before, rtol=1e-4, atol=1e-5)
    left = torch.cat((matrix.left, matrix.held_left), 1)
    torch.testing.assert_close(left.T @ left, torch.eye(20), rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.values.sort().values, torch.linalg.svdvals(before).sort().values, rtol=1e-4, atol=1e-5)


def test_sparse_spectral_draws_by_the_published_chances():
    made, drawn = torch.diag(torch.linspace(4.0, 0.1, 12)), torch.zeros(12)
    values = torch.linalg.svdvals(made)
    for seed in range(600):
        matrix = SpectralMatrix(made, place(seed), rank=1, every=1, draws="auto")
        drawn[values.sub(matrix.values[0]).abs().argmin()] += 1
    expected = (1 / 12 + values / values.sum()) / 2
    assert (drawn / 600 - expected).abs().max() < 4 * (0.11 * 0.89 / 600) ** 0.5


def test_stacked_matrices_are_each_treated_as_one():
    """Query, key and value in one product: every method sees three matrices, as if they were layers of their own."""
    parts = (12, 6, 6)
    for name in registry.names(KIND):
        fields = registry.schema(registry.find(KIND, name)).model_fields
        choice = registry.choose(KIND, {"name": name, "match": "*"} | ({"rank": 3} if "rank" in fields else {}))
        stacked = torch.nn.Sequential(Linear(10, 24, axes=("heads", "embed"), parts=parts))
        with torch.no_grad():
            stacked[0].weight.copy_(weight((24, 10)))
        pieces = stacked[0].weight.detach().split(parts)
        reparameterize(stacked, choice, 5)
        layer = stacked[0]
        assert isinstance(layer, Reparameterized)
        assert [m.outputs for m in layer.matrices] == list(parts)
        kind = type(layer.matrices[0])
        options = {k: v for k, v in choice.options.items() if k not in ("match", "others")}
        for number, piece in enumerate(pieces):
            alone: Matrix = kind(piece, Place(f"0.{number}", ("heads", "embed"), False, 5), **options)
            assert alone.composed().equal(layer.weight.split(parts)[number])


def test_frozen_layers_need_no_gradient_and_unmatched_ones_train_where_they_should():
    model = torch.nn.Sequential(Linear(6, 6, axes=("ffn", "embed")), Linear(6, 6, axes=("embed", "ffn"), residual=True))
    for layer in model:
        torch.nn.init.normal_(layer.weight)
    reparameterize(model, registry.choose(KIND, {"name": "lora", "rank": 2, "match": "1", "others": "train"}))
    assert model[0].weight.requires_grad
    assert [m.residual for m in matrices(model)] == [True]
    model(torch.ones(1, 6)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"0.weight", "1.matrices.0.left", "1.matrices.0.right"}


def test_the_jagged_schedule_falls_and_rises_with_every_restart():
    jagged = registry.choose("schedules", {"name": "jagged", "every": 20, "rise": 4, "warmup": 5.0, "floor": 0.1})
    cosine = registry.choose("schedules", {"name": "cosine", "warmup": 5.0, "floor": 0.1})
    for step in range(100):
        progress = Progress(step=step, steps=100)
        rise = 1.0 if step < 20 else min(1.0, (step % 20 + 1) / 4)
        assert jagged(progress) == pytest.approx(cosine(progress) * rise)
