"""Options of what moves weights have ranges: a value outside is refused as the recipe is read, and every default lies inside."""

import math

import pytest
from pydantic_core import PydanticCustomError

from bessemer.core import recipe, registry
from bessemer.core.errors import RecipeError
from bessemer.run import catalogue

KINDS = ["optim", "optim/around", "schedules", "models/reparameterize", "models/adapters", "train/balance", "train/guards"]
METHODS = [(kind, name) for kind in KINDS for name in registry.names(kind)]
REFUSED = {
    "optim": [
        ("lion", "betas", [0.9]),
        ("lion", "betas", [0.9, 1.5]),
        ("lion", "betas", [0.9, 0.9, 0.9]),
        ("lion", "lr", -1.0),
        ("adamw", "lr", -1.0),
        ("adamw", "lr", math.inf),
        ("adamw", "lr", math.nan),
        ("adamw", "betas", [0.9, 1.5]),
        ("adamw", "betas", [0.9, 1.0]),
        ("adamw8bit", "betas", [-0.1, 0.9]),
        ("adamw4bit", "weight_decay", -0.1),
        ("adafactor", "clip", 0.0),
        ("galore", "rank", 0),
        ("galore8bit", "refresh", 0),
        ("fira", "limit", 0.0),
        ("apollo", "scale", -1.0),
        ("apollo_mini", "eps", 0.0),
        ("lars", "momentum", 1.0),
        ("muon", "steps", 0),
        ("soap", "every", 0),
        ("shampoo", "every", 0),
        ("shampoo", "decay", 1.1),
        ("sophia", "every", 0),
        ("sophia", "share", 7.0),
        ("schedule_free_adamw", "betas", [0.0, 0.999]),
    ],
    "optim/around": [
        ("noise_scale", "every", 0),
        ("lawa", "every", 0),
        ("lawa", "latest", 0),
        ("lisa", "every", 0),
        ("spsa", "radius", 0.0),
        ("spsa", "directions", 0),
        ("ema", "decay", 1.7),
        ("lcsc", "trials", 0),
        ("deep_zero", "keep", 0.0),
        ("qk_clip", "limit", 0.0),
        ("tract", "ridge", 0.0),
        ("con_adv", "share", 1.5),
    ],
    "schedules": [("wsd", "warmup", -0.1), ("jagged", "every", 0), ("ramp", "stairs", 0), ("infinite", "plateau", 0.0), ("cosine", "floor", -1.0)],
    "models/adapters": [("patches", "size", 0), ("log_mel", "window", 0), ("frames", "channels", 0)],
    "train/balance": [("agvm", "memory", 1.0), ("uncertainty", "least", 0.0)],
    "train/guards": [("standard", "deviations", -1.0), ("watch", "patience", 0)],
    "models/reparameterize": [("lora", "rank", 0), ("bone", "rank", 1 << 17), ("lost", "density", 0.0), ("relora", "prune", 1.1), ("switch_lora", "interval", 0.0)],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "option", "value"), [(kind, *case) for kind, cases in REFUSED.items() for case in cases])
def test_what_is_out_of_range_is_refused_by_its_key(kind, name, option, value):
    with pytest.raises(PydanticCustomError) as caught:
        registry.choose(kind, {"name": name, option: value})
    faults = caught.value.context["nested"]
    assert {fault.at[0] for fault in faults} == {option}


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_defaults_are_in_range(kind, name):
    choice = registry.choose(kind, name)
    assert registry.choose(kind, registry.as_plain(choice)) == choice


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_number_has_a_range(kind, name):
    hints = registry.hints(registry.find(kind, name))
    bare = [key for key, hint in hints.items() if key != "seed" and {"int", "float"} & set(catalogue.in_words(hint).split(" | "))]
    assert bare == []


@pytest.mark.parametrize("name", registry.names("optim"))
def test_a_rate_of_zero_is_in_range(name):
    assert registry.choose("optim", {"name": name, "lr": 0.0}).options["lr"] == 0.0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ('train.optim=[{name = "lion", betas = [0.9, 1.5]}]', "train.optim[0].betas[1]"),
        ('train.around=[{name = "lawa", every = 0}]', "train.around[0].every"),
        ('train.schedule.lr={name = "jagged", every = 0}', "train.schedule.lr.every"),
        ('train.adapt={name = "lora", alpha = -1.0}', "train.adapt.alpha"),
    ],
)
def test_a_recipe_is_refused_as_it_is_read_with_its_key(override, key):
    with pytest.raises(RecipeError) as caught:
        recipe.read("demo", [override])
    assert key in str(caught.value)
