"""What tasks add to a model: initial values by name, shared adapters, and packages that rebuild or say why not."""

import json
import sys

import pytest
import torch

from bessemer.core.errors import ArtifactError, RecipeError
from bessemer.core.registry import choose
from bessemer.models import package
from bessemer.models.attach import attach, objective_of
from bessemer.models.families.decoder import Decoder

PATCHES = {"name": "patches", "size": 8}


def decoder(seed=0):
    return Decoder(40, seed, depth=1, width=32, heads=2, ffn=64)


def joined(model, task="a", objective="simmim", seed=0, **adapter):
    return attach(model, task, choose("objectives", objective), choose("models/adapters", PATCHES | adapter), seed)


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_what_is_attached_does_not_touch_the_trunk_and_is_keyed_by_seed_and_name():
    plain, model = values(decoder()), decoder()
    joined(model)
    found = values(model)
    assert all(torch.equal(found[name], value) for name, value in plain.items())
    second = decoder()
    joined(second, "b")
    joined(second, "a")
    again = values(second)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    other = decoder()
    joined(other, seed=1)
    assert not torch.equal(values(other)["tasks.a.head.weight"], found["tasks.a.head.weight"])


def test_tasks_share_an_adapter_of_one_set_of_options():
    model = decoder()
    first, second = joined(model, "a"), joined(model, "b", "mae")
    assert first.adapter is second.adapter
    assert objective_of(model, "b").parts is second.parts
    with pytest.raises(RecipeError, match="other options"):
        joined(model, "c", size=4)
    with pytest.raises(RecipeError, match="no task 'z'"):
        objective_of(model, "z")


def test_a_plain_model_has_no_parts_and_its_card_says_nothing(tmp_path):
    package.save_model(decoder(), tmp_path)
    assert "attached" not in json.loads((tmp_path / "model.json").read_text())


@pytest.mark.parametrize("change", ["name", "option", "shape"])
def test_a_package_whose_parts_cannot_be_built_says_so(tmp_path, change):
    model = decoder()
    joined(model)
    package.save_model(model, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    objective = card["attached"]["tasks"]["a"]["objective"]
    if change == "name":
        objective["name"] = "nothing"
    elif change == "option":
        objective["colour"] = 1
    else:
        card["attached"]["adapters"]["patches"]["size"] = 4
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError):
        package.build(tmp_path)


def test_a_package_gives_the_same_values_back(tmp_path):
    model = decoder()
    joined(model)
    package.save_model(model, tmp_path)
    back = values(package.build(tmp_path))
    assert all(torch.equal(back[name], value) for name, value in values(model).items())


MINE = """
from torch import nn
from bessemer.objectives.next_token import NextToken


class Half(NextToken):
    '''Without parameters of its own.'''


class Headed(NextToken):
    '''With a head.'''

    def modules(self, width, vocabulary):
        return {"head": nn.Linear(width, 2)}
"""


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """Saves a model trained with an objective of one's own, and goes where that can't be imported."""

    def save(objective, **adapter):
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "mine.py").write_text(MINE)
        monkeypatch.syspath_prepend(tmp_path / "own")
        model = decoder()
        attach(model, "a", choose("objectives", objective), choose("models/adapters", PATCHES) if adapter else None)
        package.save_model(model, tmp_path / "model")
        (tmp_path / "own" / "mine.py").unlink()
        return model, tmp_path / "model"

    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield lambda *given, **more: (save(*given, **more), sys.modules.pop("mine"))[0]
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("adapter", [{}, {"adapter": True}])
def test_a_model_is_built_where_its_own_objective_cannot_be_imported(gone, tmp_path, adapter):
    model, folder = gone("mine.Half", **adapter)
    back = package.build(folder)
    assert all(torch.equal(values(back)[name], value) for name, value in values(model).items())
    package.save_model(back, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model.json").read_text())["attached"] == json.loads((folder / "model.json").read_text())["attached"]
    with pytest.raises(RecipeError, match=r"give the command where mine\.py is"):
        objective_of(back, "a")


def test_an_objective_with_parameters_says_where_to_go(gone):
    _, folder = gone("mine.Headed")
    with pytest.raises(ArtifactError) as caught:
        package.build(folder)
    assert caught.value.mend == "give the command where mine.py is, or put its folder on PYTHONPATH"
