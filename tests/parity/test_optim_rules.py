"""Each update rule against its authors' implementation, or a widely used one: the same gradients, 20 steps, to 1e-5."""

import sys
import types
import warnings

import pytest
import torch

from bessemer.core import registry

warnings.filterwarnings("ignore")
po = pytest.importorskip("pytorch_optimizer")
SHAPES = [(24, 16), (16, 40), (32, 32), (12,), (64, 8)]
WIDE = [(64, 64), (96,)]
STEPS = 20


def problem(shapes=SHAPES, seed=0):
    """Parameters, and 20 steps' gradients, which lean to a direction of low rank as real ones do."""
    made = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=made) * 0.1 for s in shapes]
    lean = [torch.randn(s, generator=made) for s in shapes]
    return params, [[(0.3 * b + torch.randn(b.shape, generator=made)) * 0.01 for b in lean] for _ in range(STEPS)]


def run(optimizer, params, gradients):
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return params


def leaves(values):
    return [torch.nn.Parameter(v.clone()) for v in values]


def assert_same(name, theirs, shapes=SHAPES, tolerance=1e-5, prepare=None, **options):
    """Ours by name and options against `theirs`, a function of parameters."""
    start, gradients = problem(shapes)
    mine, other = leaves(start), leaves(start)
    choice = registry.choose("optim", {"name": name, **options})
    optimizer = choice([{"params": mine}])
    reference = theirs(other)
    if prepare:
        prepare(optimizer, reference)
    run(optimizer, mine, gradients)
    run(reference, other, gradients)
    moved = max((a - b).abs().max() for a, b in zip(mine, start, strict=True))
    assert moved > 1e-4
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def without_bitsandbytes(patch):
    """galore-torch and apollo-torch import it for their 8-bit variants, which are not used here."""
    for name in ("bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.optimizer", "bitsandbytes.functional"):
        module = types.ModuleType(name)
        module.Optimizer2State, module.functional, module.__path__ = torch.optim.Optimizer, module, []
        patch.setitem(sys.modules, name, module)


def split(params, **options):
    """Matrices with the options, vectors without: how the packages take low rank."""
    return [{"params": [p for p in params if p.ndim > 1], **options}, {"params": [p for p in params if p.ndim < 2]}]


def test_adamw():
    assert_same("adamw", lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, foreach=False), lr=1e-2)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_lion(decay):
    pytest.importorskip("lion_pytorch")
    from lion_pytorch import Lion

    assert_same("lion", lambda p: Lion(p, lr=1e-3, betas=(0.9, 0.99), weight_decay=decay), lr=1e-3, weight_decay=decay)


def test_lamb_without_correction():
    """The package leaves the paper's bias correction out (and by default divides the rate by half of it, switched off here)."""

    def theirs(p):
        return po.Lamb(p, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1, weight_decouple=False, eps=1e-6, adam_debias=True)

    assert_same("lamb", theirs, lr=1e-2, weight_decay=0.1, correct=False, most=10.0)


def test_lamb_as_published():
    """Algorithm 2 of the paper, written out in float64."""

    class Published(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                s = self.state[p]
                g, w = p.grad.double(), p.double()
                s["t"] = s.get("t", 0) + 1
                s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
                s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
                r = (s["m"] / (1 - 0.9 ** s["t"])) / ((s["v"] / (1 - 0.999 ** s["t"])).sqrt() + 1e-6) + 0.1 * w
                p.copy_(w - 1e-2 * w.norm() / r.norm() * r)

    assert_same("lamb", Published, lr=1e-2, weight_decay=0.1)


def test_lars():
    assert_same("lars", lambda p: po.LARS(p, lr=1.0, momentum=0.9, weight_decay=1e-3, trust_coefficient=0.01), lr=1.0, weight_decay=1e-3, trust=0.01)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_against_torch(decay):
    """torch caps the rate by 1 / sqrt(t) and has no epsilon in the means; neither shows here."""
    theirs = lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=decay, eps=(1e-15, 1e-3), foreach=False)  # noqa: E731
    assert_same("adafactor", theirs, lr=1e-2, weight_decay=decay)


def test_adafactor_against_transformers():
    pytest.importorskip("transformers")
    from transformers.optimization import Adafactor

    assert_same("adafactor", lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=True), lr=1e-2)


def test_sgd_sai():
    """The authors' sgd_sai 1.0.4, written out: its package is not on the index."""

    class Published(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self):
            params = self.param_groups[0]["params"]
            for p in params:
                if "gsnr" not in self.state[p]:
                    self.state[p]["gsnr"] = p.grad.norm() / (p.grad.std() + 1e-8)
            most = max(self.state[p]["gsnr"] for p in params)
            for p in params:
                s = self.state[p]
                s["m"] = p.grad.clone() if "m" not in s else 0.9 * s["m"] + 0.1 * p.grad
                p.mul_(1 - 0.01 * 0.1).sub_(0.1 * s["gsnr"] / most * s["m"])

    assert_same("sgd_sai", Published, lr=0.1)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_galore(decay, monkeypatch):
    without_bitsandbytes(monkeypatch)
    pytest.importorskip("galore_torch")
    from galore_torch import GaLoreAdamW

    def theirs(p):
        return GaLoreAdamW(
            split(p, rank=4, update_proj_gap=7, scale=0.25, proj_type="std"),
            lr=1e-2,
            betas=(0.9, 0.999),
            weight_decay=decay,
            no_deprecation_warning=True,
        )

    assert_same("galore", theirs, lr=1e-2, rank=4, refresh=7, weight_decay=decay)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("mini", [False, True])
def test_apollo(mini, decay, monkeypatch):
    """The same projections in both: the package draws its own from other seeds."""
    without_bitsandbytes(monkeypatch)
    pytest.importorskip("apollo_torch")
    from apollo_torch import APOLLOAdamW
    from apollo_torch.random_projector import GradientProjector

    ours = {"scale": 128.0} if mini else {"rank": 4, "scale": 2.0}
    rank, scale, by = (1, 128.0, "tensor") if mini else (4, 2.0, "channel")

    def theirs(p):
        options = {"rank": rank, "update_proj_gap": 7, "scale": scale, "proj_type": "std", "proj": "random", "scale_type": by}
        return APOLLOAdamW(split(p, **options), lr=1e-3, betas=(0.9, 0.999), weight_decay=decay)

    def prepare(optimizer, reference):
        turn = {}

        def shared(self, gradient, proj_type):
            turn[id(self)] = turn.get(id(self), 0) + 1
            basis = optimizer.projection(min(gradient.shape), 1 + 7 * (turn[id(self)] - 1), gradient)
            self.ortho_matrix = basis if proj_type == "left" else basis.T

        monkeypatch.setattr(GradientProjector, "update_ortho_matrix", shared)

    assert_same("apollo_mini" if mini else "apollo", theirs, prepare=prepare, lr=1e-3, refresh=7, weight_decay=decay, **ours)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_fira(decay):
    def theirs(p):
        options = {"rank": 4, "update_proj_gap": 7, "scale": 0.25, "projection_type": "std"}
        # the package refreshes at steps 7, 14 counted from 1 besides the first; ours, like the authors', at 1, 8, 15
        return po.Fira(split(p, **options), lr=1e-2, betas=(0.9, 0.999), weight_decay=decay)

    def prepare(optimizer, reference):
        from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

        before = GaLoreProjector.project
        patch.setattr(GaLoreProjector, "project", lambda self, grad, step, **more: before(self, grad, step - 1, **more))

    with pytest.MonkeyPatch.context() as patch:
        assert_same("fira", theirs, prepare=prepare, lr=1e-2, rank=4, refresh=7, weight_decay=decay)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_quantised_adamw(bits, decay):
    """Large enough to be quantised; torchao's rule run without its compiler. Ours rounds in the same places: one code the other way would show."""
    pytest.importorskip("torchao")
    from torchao.optim import AdamW4bit, AdamW8bit

    def theirs(p):
        return (AdamW8bit if bits == 8 else AdamW4bit)(p, lr=1e-3, betas=(0.9, 0.95), weight_decay=decay, block_size=256 if bits == 8 else 128)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: function)
        assert_same(f"adamw{bits}bit", theirs, shapes=[(64, 128), (96,), (32, 160)], lr=1e-3, weight_decay=decay)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_schedule_free_adamw(decay):
    pytest.importorskip("schedulefree")
    from schedulefree import AdamWScheduleFree

    def theirs(p):
        made = AdamWScheduleFree(p, lr=1e-2, betas=(0.9, 0.999), weight_decay=decay)
        made.train()
        return made

    assert_same("schedule_free_adamw", theirs, lr=1e-2, weight_decay=decay)


def test_schedule_free_average():
    pytest.importorskip("schedulefree")
    from schedulefree import AdamWScheduleFree

    start, gradients = problem()
    mine, other = leaves(start), leaves(start)
    ours, theirs = registry.choose("optim", {"name": "schedule_free_adamw", "lr": 1e-2})([{"params": mine}]), AdamWScheduleFree(other, lr=1e-2)
    theirs.train()
    run(ours, mine, gradients)
    run(theirs, other, gradients)
    theirs.eval()
    before = [p.detach().clone() for p in mine]
    with ours.averaged():
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))


def test_sophia():
    """The package's SophiaH clips m / max(h, eps) at p: ours with gamma = p and rate times p, the same numbers."""
    start, gradients = problem()
    made = torch.Generator().manual_seed(5)
    hessians = [[torch.randn(s, generator=made).square() * 0.3 for s in SHAPES] for _ in range(STEPS)]
    mine, other = leaves(start), leaves(start)
    options = {"name": "sophia", "lr": 0.05 * 0.06, "gamma": 0.05, "eps": 1e-12 * 0.05, "betas": [0.96, 0.99], "weight_decay": 0.1 / 0.05}
    ours = registry.choose("optim", options)([{"params": mine}])
    theirs = po.SophiaH(other, lr=0.06, betas=(0.96, 0.99), weight_decay=0.1, p=0.05, eps=1e-12)
    for gradient, hessian in zip(gradients, hessians, strict=True):
        for p, q, g in zip(mine, other, gradient, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        ours.curvature(dict(zip(mine, hessian, strict=True)))
        ours.step()
        theirs.step(hessian=hessian)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_soap(decay):
    """Square matrices: of others the longer side's second moments begin singular, and rounding alone decides on their null space's basis."""
    theirs = lambda p: po.SOAP(p, lr=3e-3, betas=(0.95, 0.95), weight_decay=decay, precondition_frequency=6)  # noqa: E731
    assert_same("soap", theirs, shapes=[(16, 16), (24, 24), (40, 40), (12,)], lr=3e-3, weight_decay=decay, every=6, sides="both")


def test_soap_with_one_side():
    """The package with sides beyond its limit left alone is ours with the same limit."""
    theirs = lambda p: po.SOAP(p, lr=3e-3, betas=(0.95, 0.95), weight_decay=0.0, precondition_frequency=6, max_precondition_dim=20)  # noqa: E731
    assert_same("soap", theirs, shapes=[(24, 16), (16, 40), (12,)], lr=3e-3, weight_decay=0.0, every=6, sides="both", most=20)
    assert_same("soap", theirs, shapes=[(24, 16), (16, 40), (12,)], lr=3e-3, weight_decay=0.0, every=6)


def test_shampoo():
    """Matrices only: for a vector the package keeps a full matrix, ours the diagonal."""
    theirs = lambda p: po.Shampoo(p, lr=1e-2, matrix_eps=1e-4)  # noqa: E731
    assert_same("shampoo", theirs, shapes=[(24, 16), (16, 40), (32, 32)], lr=1e-2, eps=1e-4, every=1)
