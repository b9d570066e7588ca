"""Feed-forward parts by modality: every column through its own alone, and text is as if the others weren't there."""

import pytest
import torch

from bessemer.core.errors import RecipeError
from bessemer.core.registry import choose
from bessemer.models import hugging_face
from bessemer.models.attach import attach
from bessemer.models.package import build, save_model
from bessemer.train.engine import Engine
from tests.contract.test_objectives import ragged
from tests.unit.objectives.pictures import decoder, loader, made

OWN = {"modalities": ["frames", "patches"]}


def captioned(model):
    objective = made("captioning", model, words=20)
    return objective, objective.prepare(loader(objective).batch(0, 3), 5)


def text(model):
    return attach(model, "text", choose("objectives", "next_token")), ragged()


def one_by_one(model, batch):
    """The same pass with each column's part chosen column by column."""
    x, (context, _) = model._adapt(model.embed(batch.tokens), batch), model.contexts(batch)
    for block in model.blocks:
        x = x + block.attention(block.attention_norm(x), context)
        normed = block.mlp_norm(x)
        picture = (batch.streams["patches_index"] >= 0)[..., None]
        x = x + torch.where(picture, block.others[1](normed), block.mlp(normed))
    return model.norm(x)


def test_every_column_goes_through_its_own_part():
    model = decoder(**OWN)
    _, batch = captioned(model)
    torch.testing.assert_close(model(batch).hidden, one_by_one(model, batch), rtol=1e-5, atol=1e-5)
    draw = torch.randn(*batch.tokens.shape, 32)
    used = [p for name, p in model.named_parameters() if ".mlp." in name or ".others.1." in name]
    found = torch.autograd.grad((model(batch).hidden * draw).sum(), used)
    wanted = torch.autograd.grad((one_by_one(model, batch) * draw).sum(), used)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_text_is_as_if_the_others_were_not_there():
    model, plain = decoder(**OWN), decoder()
    objective, batch = text(model)
    assert torch.equal(model(batch).hidden, plain(batch).hidden)
    assert model.flops_per_token(96) == plain.flops_per_token(96)
    Engine(model, {"text": (objective, 1.0)}, torch.float32).forward_backward([batch])
    assert all(p.grad is None for name, p in model.named_parameters() if ".others." in name)


def test_pictures_alone_leave_the_part_of_text_alone():
    model = decoder(**OWN)
    objective = made("mae", model)
    batch = objective.prepare(loader(objective).batch(0, 3), 5)
    Engine(model, {"mine": (objective, 1.0)}, torch.float32).forward_backward([batch])
    reached = {name.split(".")[2] for name, p in model.named_parameters() if name.startswith("blocks") and p.grad is not None}
    assert "others" in reached
    assert "mlp" not in reached
    assert model.blocks[0].others[0].down.weight.grad is None


def test_a_compiled_block_gives_the_same():
    model = decoder(**OWN)
    _, batch = captioned(model)
    expected = model(batch).hidden
    for block in model.blocks:
        block.compile(dynamic=False, backend="eager")
    torch.testing.assert_close(model(batch).hidden, expected)


def test_packages_rebuild_and_the_text_trunk_is_exported(tmp_path):
    model = decoder(**OWN)
    _, batch = captioned(model)
    save_model(model, tmp_path / "ours")
    assert torch.equal(build(tmp_path / "ours")(batch).hidden, model(batch).hidden)
    hugging_face.write_folder(model, tmp_path / "theirs")
    tokens = torch.arange(12)[None]
    assert torch.equal(hugging_face.read_folder(tmp_path / "theirs")(tokens), decoder()(tokens))


@pytest.mark.parametrize("options", [{"modalities": ["patches", "patches"]}, {"modalities": ["patches"], "experts": {"count": 4}}], ids=str)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(RecipeError, match="modalities"):
        decoder(**options)
