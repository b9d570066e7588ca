"""Every reparameterization: begins and trains as it says, merges to plain weights, is packaged, exported, and resumed bit by bit."""

import json
import math

import pytest
import torch

import bessemer
from bessemer.core import registry
from bessemer.core.artifact import seal
from bessemer.core.batch import Batch
from bessemer.core.errors import ArtifactError, RecipeError
from bessemer.core.progress import Progress
from bessemer.models import hugging_face
from bessemer.models.families.decoder import Decoder
from bessemer.models.layers.linear import Linear
from bessemer.models.package import Model, save_model
from bessemer.models.reparameterized import KIND, Reparameterized, matrices, merge, reparameterize
from bessemer.models.transfer import parameter_roles
from bessemer.train import optimizers
from bessemer.train.checkpoint import Checkpointer
from bessemer.train.checkpoint_folder import latest
from bessemer.train.checkpoint_state import restore, state_of
from bessemer.train.engine import Engine

NAMES = registry.names(KIND)
FAST = {"every": 3, "rank": 4, "interval": 2.0, "hold": 2, "draws": 2}
"""Options that make a method do within a few updates what it does over thousands."""
FROM_NOTHING = {"sltrain", "lost", "refactorize"}
FINE_TUNING = {"lora", "dora", "pissa", "bone", "ssf"}
ODD = {"depth": 2, "width": 40, "heads": 5, "kv_heads": 1, "head_size": 8, "ffn": 56, "length": 32}
"""Query, key and value of different sizes in one product, and sides that no rank divides."""


def choice(name, **options):
    fields = registry.schema(registry.find(KIND, name)).model_fields
    return registry.choose(KIND, {"name": name, **{k: v for k, v in FAST.items() if k in fields}, **options})


def adapted(name, seed=1, model=None, **options):
    return reparameterize(model or Decoder(50, 3, **ODD), choice(name, **options), seed)


def rows(step, count=4):
    made = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 50, (count, 17), generator=made)
    tokens[:, 1:] = (tokens[:, :-1] * 7 + 3) % 50  # the next token follows from the one before
    return Batch(tokens[:, :-1], torch.arange(16).expand(count, 16), None, tokens[:, 1:], {"next_token": torch.ones(count, 16)})


class Training:
    """The loop's steps without its files: forward, backward, update, and what modules do after it."""

    def __init__(self, model, lr=0.005, steps=24, dtype=torch.float32):
        self.model, self.progress = model, Progress(steps=steps)
        entries = [registry.choose("optim", {"name": "adamw", "lr": lr}, optimizers.TAGS)]
        self.optimizers = optimizers.build(model, entries, parameter_roles(model))
        self.engine = Engine(model, {"text": (registry.choose("objectives", "next_token")(), 1.0)}, dtype)

    def step(self, fixed=None):
        loss = self.engine.forward_backward([rows(self.progress.step if fixed is None else fixed)]).loss
        self.optimizers.step()
        for module in self.model.modules():
            if hasattr(module, "after_step"):
                module.after_step(self.progress, self.optimizers, {})
        self.optimizers.zero_grad()
        self.progress.step += 1
        return loss


def state(model):
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


TOKENS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("name", NAMES)
def test_begins_as_the_model_was_or_says_that_it_does_not(name):
    expected = Decoder(50, 3, **ODD)(TOKENS)
    model = adapted(name)
    assert {m.keeps for m in matrices(model)} == {name not in FROM_NOTHING}
    assert len(matrices(model)) == 2 * (3 + 1 + 2 + 1)  # query, key, value; out; gate, up; down
    close = torch.allclose(model(TOKENS), expected, rtol=1e-4, atol=2e-5)
    assert close == (name not in FROM_NOTHING)


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_only_what_should_move_moves(name):
    model = adapted(name)
    before = {key: value.clone() for key, value in state(model).items()}
    training = Training(model)
    losses = [training.step(fixed=0) for _ in range(25)]
    assert min(losses[-3:]) < losses[0] - 0.02, losses
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    moved = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    assert trains <= moved
    still = {key for key in before if not any(word in key for word in ("base", "held_", "spare_", "still_"))} - trains
    assert not still & moved
    if not hasattr(matrices(model)[0], "after_step"):
        assert moved == trains
    if name in FINE_TUNING:
        assert all(".matrices." in key for key in trains)
    else:
        assert {"embed.weight", "head.weight", "norm.weight"} <= trains


@pytest.mark.parametrize("name", NAMES)
def test_merges_to_a_plain_model_that_computes_the_same(name):
    model = adapted(name)
    training = Training(model)
    for _ in range(8):
        training.step()
    expected = model(TOKENS)
    plain = merge(model)
    assert not any(isinstance(module, Reparameterized) for module in plain.modules())
    again = Decoder(50, 3, **{**ODD, **{k: v for k, v in plain.options.items() if k.endswith("bias")}})
    assert {k: v.shape for k, v in plain.named_parameters()} == {k: v.shape for k, v in again.named_parameters()}
    assert all(value.requires_grad for value in plain.parameters())
    torch.testing.assert_close(plain(TOKENS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_packaged_is_built_again(name, tmp_path):
    model = adapted(name)
    training = Training(model)
    for _ in range(4):
        training.step()
    seal(tmp_path, "model", recipe={}, parents={}, info=save_model(model, tmp_path))
    back = Model.open(tmp_path).build()
    assert back.adapt == model.adapt
    found, wanted = state(back), state(model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(back(TOKENS), model(TOKENS))
    assert torch.equal(bessemer.load(tmp_path)(TOKENS), model(TOKENS))


def test_a_card_that_names_no_method_is_refused(tmp_path):
    save_model(adapted("lora"), tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    for wrong in ({"name": "lorra"}, {"name": "lora", "rnak": 3}):
        (tmp_path / "model.json").write_text(json.dumps(card | {"adapt": wrong}))
        with pytest.raises(ArtifactError) as error:
            bessemer.load(tmp_path)
        assert error.value.file == tmp_path / "model.json"


@pytest.mark.parametrize("name", NAMES)
def test_exports_to_hugging_face(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    start = Decoder(50, 3, **ODD | {"qk_norm": "none"})  # Llama's shape, which may have biases
    model = adapted(name, model=start)
    training = Training(model)
    for _ in range(4):
        training.step()
    expected = model(TOKENS)
    seal(tmp_path / "ours", "model", recipe={}, parents={}, info=save_model(model, tmp_path / "ours"))
    hugging_face.export(Model.open(tmp_path / "ours"), tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_continues_from_a_checkpoint_bit_by_bit(name, tmp_path):
    """Saved between two of a method's own acts, and taken up by a model begun with the same seed."""
    whole = Training(adapted(name))
    for _ in range(4):
        whole.step()
    saver = Checkpointer(tmp_path)
    tensors, plain = state_of(whole.model, whole.optimizers.optimizers)
    saver.save(4, tensors, plain)
    saver.wait()
    again = Training(adapted(name))
    restore(latest(tmp_path), again.model, again.optimizers.optimizers)
    again.progress.step = 4
    for _ in range(8):
        whole.step()
        again.step()
    wanted, found = state(whole.model), state(again.model)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_draws_otherwise_and_the_same_the_same(name):
    first, second, other = ([state(adapted(name, seed))[k] for k in state(adapted(name))] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    drawn = not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert drawn == (name not in {"pissa", "bone", "ssf", "lost", "refactorize"})  # these begin from the weight alone


@pytest.mark.parametrize("name", NAMES)
def test_computes_in_bfloat16_near_what_it_computes_in_float32(name):
    losses, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        training = Training(adapted(name), lr=1e-3)
        for _ in range(4):
            training.step()
        training.engine.dtype = dtype
        losses.append(training.engine.forward_backward([rows(0)]).loss)
        gradients.append([p.grad.flatten() for p in training.model.parameters() if p.grad is not None])
        assert all(g.dtype == torch.float32 for g in gradients[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(torch.cat(gradients[0]), torch.cat(gradients[1]), dim=0) > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name):
    """Traced whole with its backward pass, and the same numbers; the code generator of the machine is not this test's."""
    torch._dynamo.reset()
    eager, compiled = Training(adapted(name)), Training(adapted(name))
    compiled.model.blocks[0].attention.qkv.compile(dynamic=False, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        assert compiled.step() == pytest.approx(eager.step(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_change_nothing(name):
    gradients = []
    for cut in (1, 4):
        model = adapted(name)
        engine = Engine(model, {"text": (registry.choose("objectives", "next_token")(), 1.0)}, torch.float32)
        batch = rows(0)
        engine.forward_backward([batch.rows_of(i, i + 4 // cut) for i in range(0, 4, 4 // cut)])
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_may_be_matched_and_a_tied_one_is_refused(name):
    model = adapted(name, match=["head", "blocks.1.*"])
    assert isinstance(model.head, Reparameterized)
    assert isinstance(model.blocks[0].mlp.down, Linear)
    training = Training(model)
    for _ in range(3):
        training.step()
    expected = model(TOKENS)
    assert torch.allclose(merge(model)(TOKENS), expected, rtol=1e-5, atol=1e-5)
    tied = Decoder(50, 3, **ODD, tied=True)
    with pytest.raises(RecipeError, match="shares its weight"):
        adapted(name, model=tied, match=["head"])
    assert isinstance(adapted(name, model=tied).blocks[0].mlp.down, Reparameterized)


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_that_matches_nothing_is_refused(name):
    with pytest.raises(RecipeError, match="no linear layer matches"):
        adapted(name, match="layers.*")


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_counted_by_what_is_multiplied(name):
    plain, model = Decoder(50, 3, **ODD), adapted(name)
    assert math.isfinite(model.flops_per_token(32))
    dense = sum(6.0 * m.outputs * m.inputs for m in matrices(model))
    assert plain.flops_per_token(32) - dense == pytest.approx(model.flops_per_token(32) - sum(m.flops() for m in matrices(model)))
