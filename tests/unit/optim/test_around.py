"""What acts around the optimizers, on a toy model through the real engine: each method's defining property."""

import math

import pytest
import torch
from torch import nn

from bessemer.core import registry, rng
from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World
from bessemer.core.progress import Progress
from bessemer.models.families.decoder import Decoder
from bessemer.models.layers.embedding import Embedding
from bessemer.models.layers.head import Head
from bessemer.models.reparameterized import reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.objectives.next_token import NextToken
from bessemer.optim._probe import Probe, weights
from bessemer.optim.around.tract import corrected
from bessemer.parallel.layout import Layout
from bessemer.train import optimizers
from bessemer.train.engine import Engine

VOCABULARY, LENGTH = 40, 24


def model(seed=0, **options):
    return Decoder(VOCABULARY, seed, **({"depth": 3, "width": 32, "heads": 4, "ffn": 48, "length": LENGTH, "qk_norm": "none"} | options)).train()


def batches(step=0, count=2, rows=3):
    found = []
    for number in range(count):
        draw = torch.Generator().manual_seed(100 * step + number)
        tokens = torch.randint(VOCABULARY, (rows, LENGTH + 1), generator=draw)
        tokens[:, 1::2] = (tokens[:, :-1:2] * 3 + 1) % VOCABULARY  # every other token follows from the one before
        segments = torch.ones(rows, LENGTH, dtype=torch.int64)
        segments[:, LENGTH // 2 :] = 2
        positions = torch.arange(LENGTH).remainder(LENGTH // 2).expand(rows, -1)
        samples = torch.arange(rows) + rows * (number + count * step)
        weights = {"next_token": (torch.arange(LENGTH) != LENGTH // 2 - 1).float().expand(rows, -1).contiguous()}
        found.append(Batch(tokens[:, :-1], positions, segments, tokens[:, 1:], weights, samples=samples))
    return found


class Toy:
    """The parts of a run, stepped as train/loop.py steps them."""

    def __init__(self, optim=("adamw",), around=(), dtype=torch.float32, clip=None, steps=40, seed=0, **options):
        self.model = model(seed, **options).to(dtype)
        self.engine = Engine(self.model, {"text": (NextToken(), 1.0)}, torch.float32)
        self.progress = Progress(steps=steps)
        chosen = [registry.choose("optim", each, optimizers.TAGS) for each in optim]
        beside = [registry.choose("optim/around", each, optimizers.TAGS) for each in around]
        self.optimizers = optimizers.build(self.model, chosen, parameter_roles(self.model), beside)
        self.clip = clip

    def probe(self, step=None):
        return Probe(self.engine, batches(self.progress.step if step is None else step), self.progress)

    def backward(self):
        self.optimizers.begin(self.progress)
        result = self.engine.forward_backward(batches(self.progress.step))
        self.optimizers.prepare(self.probe())
        self.engine.clip(self.clip)
        return result

    def step(self):
        result = self.backward()
        self.optimizers.step()
        self.optimizers.zero_grad()
        self.progress.step += 1
        return result

    def values(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def gradients(toy):
    return {name: p.grad.clone() for name, p in toy.model.named_parameters() if p.grad is not None}


# Sophia's estimates


class Quadratic(nn.Module):
    """Logits that are a linear map of a table, so that curvature is that of cross-entropy alone; differentiable twice."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.embed = Embedding(VOCABULARY, 8)
        self.embed.weight.data = torch.randn(VOCABULARY, 8, generator=draw)
        self.head = Head(8, VOCABULARY)
        self.head.weight.data = torch.randn(VOCABULARY, 8, generator=draw) * 0.5

    def forward(self, batch):
        return Outputs(self.embed(batch.tokens), self.head)


def quadratic():
    made = Quadratic()
    return made, Engine(made, {"text": (NextToken(), 1.0)}, torch.float32)


def plain_loss(made, found):
    logits = torch.cat([made(b).logits().flatten(0, 1) for b in found])
    weight = torch.cat([b.weights["next_token"].flatten() for b in found])
    loss = nn.functional.cross_entropy(logits, torch.cat([b.targets.flatten() for b in found]), reduction="none")
    return (loss * weight).sum() / weight.sum()


def test_hutchinson_is_u_times_the_hessians_product_with_u():
    made, engine = quadratic()
    sophia = registry.choose("optim", {"name": "sophia", "estimate": "hutchinson", "share": 1.0})([{"params": list(made.parameters())}])
    found = sophia.hutchinson(Probe(engine, batches(), Progress()), list(made.parameters()))
    vectors = [torch.randn(p.shape, generator=rng.generator(0, "hutchinson", 0, name)) for name, p in made.named_parameters()]
    slopes = torch.autograd.grad(plain_loss(made, batches()), list(made.parameters()), create_graph=True)
    along = sum((g * v).sum() for g, v in zip(slopes, vectors, strict=True))
    for mine, product, vector in zip(found, torch.autograd.grad(along, list(made.parameters())), vectors, strict=True):
        wanted = vector * product
        assert float((mine - wanted).norm() / wanted.norm()) < 2e-3


def test_gauss_newton_bartlett_is_unbiased_for_the_gauss_newton_diagonal():
    """Over many draws its mean is the exact diagonal, which for a linear map into cross-entropy is known in closed form."""
    made, engine = quadratic()
    sophia = registry.choose("optim", {"name": "sophia", "share": 1.0})([{"params": list(made.parameters())}])
    mean = 0.0
    draws = 300
    for step in range(draws):
        mean = mean + sophia.gauss_newton_bartlett(Probe(engine, batches(), Progress(step=step)), [made.head.weight])[0] / draws
    inputs = torch.cat([made.embed(b.tokens).flatten(0, 1) for b in batches()]).detach()
    weight = torch.cat([b.weights["next_token"].flatten() for b in batches()])
    share = made.head(inputs).softmax(-1).detach()
    exact = torch.einsum("n,nv,nd->vd", weight / weight.sum(), share * (1 - share), inputs.square())
    assert float((mean - exact).norm() / exact.norm()) < 0.1
    assert float((mean.sum() / exact.sum() - 1).abs()) < 0.03


def test_drawn_labels_depend_on_the_sample_not_on_the_cut():
    toy = Toy()
    whole, labels = toy.probe().redrawn(batches(), 5)
    cut, count = toy.probe().redrawn([b.rows_of(i, i + 1) for b in batches() for i in range(b.rows)], 5)
    assert labels == count == float(sum((b.weights["next_token"] > 0).sum() for b in batches()))
    torch.testing.assert_close(torch.cat([b.targets for b in whole]), torch.cat([b.targets for b in cut]))


@pytest.mark.parametrize("estimate", ["hutchinson", "gauss_newton_bartlett"])
def test_sophia_takes_its_estimates_in_and_learns(estimate):
    toy = Toy([{"name": "sophia", "lr": 2e-3, "estimate": estimate, "every": 5}])
    losses = [toy.step().loss for _ in range(25)]
    weight = toy.model.blocks[0].mlp.down.weight
    assert float(toy.optimizers.moving[0].state[weight]["hessian"].abs().max()) > 0
    assert losses[-1] < losses[0] - 0.3


# zeroth order


def test_spsa_along_its_direction_is_the_true_slope():
    toy = Toy(["sgd"], [{"name": "spsa", "radius": 1e-3}], dtype=torch.float64)
    toy.backward()
    estimate = gradients(toy)
    assert all(not p.requires_grad for p in toy.model.parameters())
    for p in toy.model.parameters():
        p.requires_grad_(True)
    true = dict(zip(estimate, toy.probe().gradients(list(toy.model.parameters())), strict=True))
    spsa = toy.optimizers.around[0]
    direction = {spsa.names[p]: spsa.draw(toy.probe(), p, "spsa", 0, 0) for p in spsa.names}
    slope = sum(float((true[n] * direction[n]).sum()) for n in true)
    for name, found in estimate.items():
        torch.testing.assert_close(found, slope * direction[name], rtol=1e-3, atol=1e-9)


def test_spsa_leaves_the_weights_bit_by_bit_and_descends_on_average():
    toy = Toy([{"name": "sgd", "lr": 3e-3, "momentum": 0.0}], [{"name": "spsa", "directions": 4}])
    before = toy.values()
    toy.backward()
    assert all(torch.equal(before[n], v) for n, v in toy.values().items())
    losses = [toy.step().loss for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_deep_zero_coordinates_equal_the_gradient_with_blocks_reused():
    toy = Toy(["sgd"], [{"name": "deep_zero", "keep": 0.01, "radius": 2e-3, "directions": 2}], dtype=torch.float64, width=16, heads=2, ffn=16)
    toy.backward()
    estimate = gradients(toy)
    for p in toy.model.parameters():
        p.requires_grad_(True)
    true = dict(zip(estimate, toy.probe().gradients(list(toy.model.parameters())), strict=True))
    found = {name: value.nonzero() for name, value in estimate.items()}
    count = sum(len(f) for f in found.values())
    total = sum(p.numel() for p in toy.model.parameters())
    assert 0.005 * total < count < 0.03 * total
    assert len({n.split(".")[1] for n, f in found.items() if n.startswith("blocks") and len(f)}) > 1
    mine = torch.cat([value[value != 0] for value in estimate.values()])
    exact = torch.cat([true[name][value != 0] for name, value in estimate.items()])
    assert float((mine - exact).norm() / exact.norm()) < 0.03  # the loss itself is rounded to single precision


def test_reused_blocks_give_the_same_loss():
    toy = Toy()
    weight = toy.model.blocks[2].mlp.down.weight
    with toy.probe().reusing() as reuse:
        assert reuse.loss(3) == reuse.loss(0) == reuse.base
        with weights({weight: weight.detach() * 1.5}):
            assert reuse.loss(2) == reuse.loss(0) != reuse.base
    assert toy.probe().loss() == reuse.base
    assert all("forward" not in block.__dict__ for block in toy.model.blocks)


# turns, adversaries, first layers


def test_lisa_trains_the_drawn_layers_alone_and_forgets_the_others():
    toy = Toy(around=[{"name": "lisa", "layers": 1, "every": 4}])
    lisa, trained = toy.optimizers.around[0], set()
    for step in range(24):
        before = toy.values()
        toy.step()
        chosen = lisa.drawn(step)
        trained |= chosen
        for name, value in toy.values().items():
            frozen = name.startswith("blocks.") and int(name.split(".")[1]) not in chosen
            assert torch.equal(before[name], value) == frozen, name
        held = {name for name, p in toy.model.named_parameters() if p in toy.optimizers.moving[0].state}
        assert held == {n for n in before if not n.startswith("blocks.") or int(n.split(".")[1]) in chosen}
    assert trained == {0, 1, 2}


def test_lisa_refuses_more_layers_than_there_are():
    with pytest.raises(RecipeError, match="4 of 3 layers"):
        Toy(around=[{"name": "lisa", "layers": 4}])


def test_con_adv_mixes_in_the_gradient_at_inputs_perturbed_against_the_weights_of_one_step_before():
    toy = Toy(around=[{"name": "con_adv", "size": 0.2, "share": 0.3}])
    history = [toy.values()]
    for _ in range(3):
        toy.step()
        history.append(toy.values())
    toy.backward()
    mixed = gradients(toy)

    def embedded(made, found, push=None):
        leaf = made.embed(found.tokens).detach().requires_grad_() if push is None else made.embed(found.tokens) + push
        made.embed.forward, kept = lambda indices: leaf, made.embed.forward
        try:
            outputs = made(found)
        finally:
            made.embed.forward = kept
        logits, weight = outputs.logits(), found.weights["next_token"]
        loss = (nn.functional.cross_entropy(logits.flatten(0, 1), found.targets.flatten(), reduction="none") * weight.flatten()).sum()
        return loss / (2 * weight.sum()), leaf

    stale, now = model(), model()
    stale.load_state_dict(history[2])
    now.load_state_dict(history[3])
    for found in batches(3):
        loss, leaf = embedded(stale, found)
        loss.backward()
        push = leaf.grad.sign() * 0.2 * leaf.detach().square().mean(dim=(1, 2), keepdim=True).sqrt()
        clean, _ = embedded(now, found, torch.zeros(()))
        against, _ = embedded(now, found, push)
        (0.7 * clean + 0.3 * against).backward()
    for name, p in now.named_parameters():
        torch.testing.assert_close(mixed[name], p.grad, rtol=1e-4, atol=1e-6)


def test_tract_moves_the_first_layers_outputs_along_their_gradient():
    """Without a ridge and with at least as many weights as inputs, the outputs on the batch move exactly by minus the rate times b times their gradient."""
    draw = torch.Generator().manual_seed(2)
    inputs, slopes = torch.randn(6, 10, generator=draw).double(), torch.randn(6, 4, generator=draw).double()
    gradient = slopes.mT @ inputs
    moved = inputs @ corrected(gradient, inputs.mT @ inputs / 6, 1e-9).mT
    torch.testing.assert_close(moved, slopes * 6, rtol=1e-3, atol=1e-3)
    table = corrected(torch.ones(3, 2), torch.tensor([0.5, 0.25, 0.0]), 0.1)
    torch.testing.assert_close(table[:, 0], torch.tensor([1 / 0.6, 1 / 0.35, 10.0]))


def test_tract_sees_the_inputs_of_the_whole_batch():
    toy, plain = Toy(around=[{"name": "tract", "match": "embed.weight", "ridge": 0.3}]), Toy()
    toy.backward()
    plain.backward()
    tokens = torch.cat([b.tokens.flatten() for b in batches()])
    share = torch.bincount(tokens, minlength=VOCABULARY) / len(tokens)
    wanted = plain.model.embed.weight.grad / (share + 0.3)[:, None]
    torch.testing.assert_close(toy.model.embed.weight.grad, wanted)
    torch.testing.assert_close(toy.model.head.weight.grad, plain.model.head.weight.grad)
    with pytest.raises(RecipeError, match="no linear layer"):
        Toy(around=["tract"])


# averages


def test_ema_and_lawa_are_their_formulas():
    toy = Toy(around=[{"name": "ema", "decay": 0.8, "warm": False}])
    average = None
    for _ in range(6):
        toy.step()
        now = toy.values()
        average = now if average is None else {n: 0.8 * average[n] + 0.2 * now[n] for n in now}
    before = toy.values()
    with toy.optimizers.averaged():
        for name, value in toy.values().items():
            torch.testing.assert_close(value, average[name])
    assert all(torch.equal(before[n], v) for n, v in toy.values().items())
    toy = Toy(around=[{"name": "lawa", "latest": 3, "every": 2}])
    history = []
    for _ in range(9):
        toy.step()
        history.append(toy.values())
    with toy.optimizers.averaged():
        for name, value in toy.values().items():
            torch.testing.assert_close(value, (history[3][name] + history[5][name] + history[7][name]) / 3)


def test_two_averages_of_one_parameter_are_refused():
    with pytest.raises(RecipeError, match="averages parameters"):
        Toy(around=["ema", "lawa"])
    with pytest.raises(RecipeError, match="averages parameters"):
        Toy(["schedule_free_adamw"], ["ema"])
    Toy([{"name": "schedule_free_adamw", "role": "matrix"}, "adamw"], [{"name": "ema", "role": "vector"}])


@pytest.mark.parametrize(("latest", "every"), [(4, 4), (8, 5), (4, 3)])  # weights are due at the last step, as the first of a place or not, or aren't
def test_lcsc_is_no_worse_than_what_it_begins_with(latest, every):
    toy = Toy([{"name": "adamw", "lr": 2e-2}], [{"name": "lcsc", "latest": latest, "every": every, "trials": 24}], steps=20)
    for _ in range(19):
        toy.step()
    lcsc = toy.optimizers.around[0]
    assert "coefficients" not in lcsc.plain
    probe = toy.probe()
    toy.step()
    found = lcsc.coefficients()
    assert len(found) == lcsc.held() == min(latest, 20 // every)
    assert abs(sum(found) - 1) < 1e-5
    if 20 % every == 0:
        newest = lcsc.combined([1.0 if place == lcsc.newest() else 0.0 for place in range(lcsc.held())])
        assert all(value.equal(parameter) for parameter, value in newest.items())
    best = min(lcsc._score(probe, each) for each in lcsc._beginnings())
    with toy.optimizers.averaged():
        assert probe.loss() <= best


def test_lcsc_forgets_what_was_found_for_other_weights():
    toy = Toy([{"name": "adamw", "lr": 2e-2}], [{"name": "lcsc", "latest": 3, "every": 2, "trials": 12, "times": 2}], steps=20)
    lcsc, found = toy.optimizers.around[0], []
    for _ in range(20):
        toy.step()
        found.append(lcsc.coefficients() if lcsc.held() else [])
    searched = [len(set(each)) > 1 for each in found]
    assert [step for step, each in enumerate(searched, start=1) if each] == [10, 11, 20]


@pytest.mark.parametrize("name", ["ema", "lawa", "lcsc"])
def test_averages_of_parameters_that_change_their_meaning_are_refused(name):
    made = reparameterize(model(), registry.choose("models/reparameterize", {"name": "relora", "rank": 4}), 0)
    with pytest.raises(RecipeError, match="stand for something else"):
        optimizers.build(made, [registry.choose("optim", "adamw")], parameter_roles(made), [registry.choose("optim/around", {"name": name})])


# query and key clipping


def logits(made, found):
    """Each head's largest attention logit, by hooks on nothing but the projections: [layers, heads]."""
    peaks = []
    for layer in made.blocks:
        attention, seen = layer.attention, {}
        hook = attention.qkv.register_forward_hook(lambda module, inputs, output, seen=seen: seen.update(out=output))
        made(found)
        hook.remove()
        query, key, _ = seen["out"].split(attention.parts, dim=-1)
        rows = query.shape[0]
        query = query.view(rows, LENGTH, attention.heads, -1)
        key = key.view(rows, LENGTH, attention.kv_heads, -1).repeat_interleave(attention.heads // attention.kv_heads, 2)
        scores = torch.einsum("rqhd,rkhd->rhqk", query, key) / math.sqrt(query.shape[-1])
        same = found.segments[:, :, None] == found.segments[:, None]
        scores = scores.masked_fill(~(same & torch.ones(LENGTH, LENGTH).tril().bool())[:, None], -torch.inf)
        peaks.append(scores.amax((0, 2, 3)))
    return torch.stack(peaks)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("bias", ["none", "qkv"])
def test_qk_clip_brings_each_heads_largest_logit_to_the_limit_and_touches_no_other(kv_heads, bias):
    toy = Toy([{"name": "adamw", "lr": 0.0}], [{"name": "qk_clip", "limit": 0.95}], kv_heads=kv_heads, positions="none", attention_bias=bias)
    for block in toy.model.blocks:
        block.attention.qkv.weight.data[:8] *= 6.0
    with torch.no_grad():
        before = torch.stack([logits(toy.model, b) for b in batches()]).amax(0)
        first = toy.model.blocks[0].attention.qkv.weight.detach().clone()
        toy.step()
        seen = torch.stack([layer.attention.peaks for layer in toy.model.blocks])
        torch.testing.assert_close(seen, before)
        after = torch.stack([logits(toy.model, b)[:1] for b in batches()]).amax(0)
    assert bool((before > 0.95).any())
    assert bool((before <= 0.95).any())
    over = before[0] > 0.95
    torch.testing.assert_close(after[0][over], torch.full_like(after[0][over], 0.95), rtol=1e-4, atol=1e-6)
    query, old = toy.model.blocks[0].attention.qkv.weight[:32].view(4, 8, 32), first[:32].view(4, 8, 32)
    assert torch.equal(query[~over], old[~over])
    assert torch.equal(toy.model.blocks[0].attention.qkv.weight[32 + 8 * kv_heads :], first[32 + 8 * kv_heads :])


def test_qk_clip_refuses_normalised_queries():
    with pytest.raises(RecipeError, match="normalised"):
        Toy(around=["qk_clip"], qk_norm="head")


def test_qk_clip_refuses_weights_made_of_others():
    made = reparameterize(model(), registry.choose("models/reparameterize", {"name": "lora", "rank": 4}), 0)
    with pytest.raises(RecipeError, match="made of other parameters"):
        optimizers.build(made, [registry.choose("optim", "adamw")], parameter_roles(made), [registry.choose("optim/around", "qk_clip")])


# the noise scale


def test_the_noise_of_a_lone_row_is_measured_by_its_beginning():
    """Otherwise a batch ramped down to one row would never grow again."""
    toy = Toy(around=[{"name": "noise_scale", "every": 1}])
    measure = toy.optimizers.around[0]
    row = batches(count=1, rows=1)
    part = measure._part(Probe(toy.engine, row, Progress()))
    assert 0 < part[0].count("next_token") < row[0].count("next_token")
    assert part[0].weights["next_token"][:, LENGTH // 2 :].count_nonzero() == 0


def measured(lengths: list[float], spread: float, steps: int) -> tuple[float, float]:
    """The noise scale of gradients drawn with a known mean and covariance, each step's times one of the lengths in turn; and the exact one."""
    weight, mean = nn.Parameter(torch.zeros(1000)), torch.linspace(-1, 1, 1000)

    class Fake:
        def __init__(self):
            self.model, self.engine = nn.Module(), self
            self.model.weight = weight
            self.step, self.layout = 0, Layout(World(), self.model)

        def forward_backward(self, batches):
            rows = torch.cat([b.samples for b in batches])
            noise = torch.stack([torch.randn(1000, generator=torch.Generator().manual_seed(int(s))) * spread for s in rows]).mean(0)
            weight.grad = (mean + noise) * lengths[progress.step % len(lengths)]

    measure = registry.choose("optim/around", {"name": "noise_scale", "every": 1, "decay": 0.99})([{"params": [weight], "names": ["weight"]}], None)
    progress = Progress(batch=64)
    engine = Fake()
    for step in range(steps):
        progress.step = step
        made = [
            Batch(torch.zeros(4, 1), torch.zeros(4, 1), weights={"t": torch.ones(4, 1)}, samples=torch.arange(4) + 4 * n + 16 * step)
            for n in range(4)
        ]
        engine.forward_backward(made)
        measure.prepare(Probe(engine, made, progress))
        measure.step()
    return progress.noise_scale, 1000 * spread**2 / float(mean.square().sum())


def test_the_noise_scale_of_a_known_gradient():
    """The measure finds tr(covariance) / |mean|^2 per token, and how long gradients are at which step says nothing about it."""
    found, exact = measured([1.0], 4.0, 200)
    assert found == pytest.approx(exact, rel=0.15)
    assert measured([1e3, 1.0, 1e-3], 4.0, 200)[0] == pytest.approx(found, rel=1e-4)


def test_noise_that_hides_the_mean_is_told_as_unmeasured():
    """Or a small batch, which measures badly, would stay small because of what it once measured."""
    toy = Toy(around=[{"name": "noise_scale", "every": 1}])
    measure = toy.optimizers.around[0]
    measure.progress, measure.found = Progress(noise_scale=4096.0), (-0.5, 8.0)
    measure.step()
    assert measure.progress.noise_scale == 0.0


def test_the_ramp_follows_the_noise_scale():
    ramp = registry.choose("schedules", {"name": "noise_ramp", "start": 0.125})
    assert ramp(Progress(steps=10, batch=4096)) == 1.0
    found = [ramp(Progress(steps=10, batch=4096, noise_scale=noise)) for noise in (100, 600, 1100, 2100, 4500, 1e6)]
    assert found == [0.125, 0.125, 0.25, 0.5, 1.0, 1.0]


# updates inside the backward pass


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor", "galore", "sgd"])
def test_updates_inside_the_backward_pass_are_the_same_and_no_gradient_is_left(name):
    options = {"rank": 4} if name == "galore" else {}
    entries = [{"name": name, **options, **({"role": "matrix"} if name == "muon" else {})}, *(["adamw"] if name == "muon" else [])]
    whole, apart = Toy(entries), Toy(entries)
    apart.optimizers.update_in_backward(lambda: None)
    for step in range(4):
        for toy in (whole, apart):
            toy.optimizers.begin(toy.progress)
            toy.engine.forward_backward(batches(step, count=1))
        assert all(p.grad is None for p in apart.model.parameters())
        norm = whole.engine.clip(None)
        assert apart.optimizers.released == pytest.approx(norm, rel=1e-5)
        for toy in (whole, apart):
            toy.optimizers.step()
            toy.optimizers.zero_grad()
    for (label, a), b in zip(whole.model.named_parameters(), apart.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=label)


def test_a_gradient_that_is_not_finite_moves_nothing_inside_the_backward_pass():
    toy = Toy()
    toy.optimizers.update_in_backward(lambda: None)
    toy.model.head.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = toy.values()
    toy.optimizers.begin(toy.progress)
    toy.engine.forward_backward(batches(count=1))
    assert torch.equal(before["head.weight"], toy.values()["head.weight"])
    assert not torch.equal(before["embed.weight"], toy.values()["embed.weight"])


@pytest.mark.parametrize(
    "entries", [(["sophia"], []), (["schedule_free_adamw"], []), (["sgd_sai"], []), (["adamw"], ["spsa"]), (["adamw"], ["con_adv"])]
)
def test_what_needs_the_whole_gradient_refuses_updates_inside_the_backward_pass(entries):
    with pytest.raises(RecipeError, match="needs the whole gradient"):
        Toy(*entries).optimizers.update_in_backward(lambda: None)


@pytest.mark.parametrize(
    ("optim", "around", "passes"),
    [
        ("adamw", [], 1.0),
        ("adamw", ["con_adv"], 3.0),
        ("adamw", ["noise_scale"], 1.5),  # and one of the two micro-batches again
        ("adamw", [{"name": "spsa", "directions": 3}], 1 / 3 + 2 * 3 / 3),  # two losses a direction, beside the step's own
        ({"name": "sophia", "share": 0.5}, [], 1.0 + 0.5 + 0.5 / 3),  # labels are drawn by a forward pass
        ({"name": "sophia", "share": 1.0, "estimate": "hutchinson"}, [], 3.0),
    ],
)
def test_the_engine_counts_the_passes_that_methods_ask_for(optim, around, passes):
    toy = Toy(optim=[optim], around=around)
    toy.backward()
    assert toy.engine.spent() == pytest.approx(passes * sum(batch.tokens.numel() for batch in batches()))
    assert toy.engine.spent() == 0.0
