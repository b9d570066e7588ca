"""Recipes: extension, overrides, and the resolved recipe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bessemer.core import recipe
from bessemer.core.errors import RecipeError

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))  # the toy stages

BASE = """
seed = 3
[[stage]]
do = "run_toys.write"
words = 5

[[stage]]
do = "run_toys.train"
optim = [{ role = "matrix", name = "wsd", warmup = 0.5 }, "constant"]
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path / "base.toml"


def options(read: recipe.Recipe, stage: str) -> dict:
    return next(s for s in read.stages if s.name == stage).plain()


def test_defaults_are_written_out(base):
    read = recipe.read(base)
    assert (read.name, read.seed) == ("base", 3)
    assert options(read, "write") == {"words": 5, "mood": "low", "path": None}
    assert options(read, "train")["optim"][0] | {"decay": 0} == {**options(read, "train")["optim"][0], "decay": 0}


def test_the_resolved_recipe_reads_as_itself(base):
    plain = recipe.read(base).plain()
    cleaned = dict(plain.items())
    cleaned["stage"] = [{k: v for k, v in stage.items() if v is not None} for stage in plain["stage"]]
    assert recipe.read(cleaned).plain() == plain


@pytest.mark.parametrize(
    ("override", "stage", "path", "value"),
    [
        ("write.words=7", "write", ["words"], 7),
        ("words=7", "write", ["words"], 7),
        ("lr=2", "train", ["lr"], 2.0),
        ("mood=high", "write", ["mood"], "high"),
        ('mood="high"', "write", ["mood"], "high"),
        ("optim.warmup=0.25", "train", ["optim", 0, "warmup"], 0.25),
        ("optim.matrix.warmup=0.25", "train", ["optim", 0, "warmup"], 0.25),
        ("train.optim.0.warmup=0.25", "train", ["optim", 0, "warmup"], 0.25),
        ("optim.1=cosine", "train", ["optim", 1, "name"], "cosine"),
        ("optim.name=cosine", "train", ["optim", 0, "name"], "cosine"),
    ],
)
def test_overrides_reach_their_place(base, override, stage, path, value):
    found = options(recipe.read(base, [override]), stage)
    for part in path:
        found = found[part]
    assert found == value


def test_another_method_begins_from_its_own_defaults_and_keeps_its_role(base):
    first = options(recipe.read(base, ["optim.name=cosine"]), "train")["optim"][0]
    assert first["role"] == "matrix"
    assert first["warmup"] != 0.5


def test_a_methods_options_follow_its_name_in_any_order(base):
    one = recipe.read(base, ["optim.warmup=0.1", "optim.name=cosine"]).plain()
    assert one == recipe.read(base, ["optim.name=cosine", "optim.warmup=0.1"]).plain()
    assert one["stage"][1]["optim"][0]["warmup"] == 0.1


def test_a_part_of_a_default_can_be_changed_where_the_recipe_leaves_it_out(base):
    base.write_text(BASE.replace("optim", "# optim"))
    changed = options(recipe.read(base, ["optim.matrix.warmup=0.125"]), "train")["optim"]
    assert changed[0]["warmup"] == 0.125
    assert (changed[0]["name"], changed[0]["role"], changed[1]["name"]) == ("wsd", "matrix", "constant")


def test_a_task_may_be_renamed_and_keeps_its_other_keys():
    given = {"stage": [{"do": "train", "task": [{"name": "one", "weight": 0.5, "objective": {"name": "meap", "rate": 0.2}}]}]}
    for key in ("task.name", "task.0.name", "train.task.name"):
        task = recipe.read(given, [f"{key}=two"]).stages[0].plain()["task"][0]
        assert (task["name"], task["weight"], task["objective"]["rate"]) == ("two", 0.5, 0.2)
    assert "rate" not in recipe.read(given, ["task.objective.name=ul2"]).stages[0].plain()["task"][0]["objective"]


def test_overrides_from_python_may_be_none(base):
    assert options(recipe.read(base, {"train.steps": None}), "train")["steps"] is None


def test_top_keys_can_be_overridden(base):
    assert recipe.read(base, ["seed=9"]).seed == 9
    assert recipe.read(base, ["train.seed=9"]).stages[1].seed == 9


def test_a_child_changes_what_it_names_and_keeps_the_rest(base):
    child = base.with_name("child.toml")
    child.write_text('extends = "base"\nseed = 4\n[[stage]]\ndo = "run_toys.write"\nmood = "high"\n[[stage]]\ndo = "run_toys.count"\n')
    read = recipe.read(child)
    assert (read.name, read.seed) == ("child", 4)
    assert options(read, "write") == {"words": 5, "mood": "high", "path": None}
    assert [stage.name for stage in read.stages] == ["write", "train", "count"]


def test_a_dict_can_extend_a_file(base):
    read = recipe.read({"extends": str(base), "name": "mine", "stage": [{"do": "run_toys.write", "words": 1}]})
    assert options(read, "write")["words"] == 1
    assert read.seed == 3


def test_reading_leaves_a_given_dict_alone():
    given = {"stage": [{"do": "run_toys.write"}]}
    recipe.read(given, ["words=9"])
    assert given == {"stage": [{"do": "run_toys.write"}]}


def test_a_mistake_deep_inside_is_told_with_its_whole_path_and_its_file(base):
    base.write_text(BASE.replace("0.5", '"long"'))
    with pytest.raises(RecipeError) as caught:
        recipe.read(base)
    assert caught.value.key == "train.optim[0].warmup"
    assert caught.value.file == base


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.optim.matrix.warmup=long", "train.optim[0].warmup"),
        ("optim.warmup=long", "train.optim[0].warmup"),
        ("lr=long", "train.lr"),
        ("train.optim.1.name=nothing", "train.optim[1].name"),
        ("seed=long", "seed"),
        ("train.seed=long", "train.seed"),
        ("name=..", "name"),
    ],
)
def test_a_mistake_given_by_an_override_is_not_told_as_the_files(base, override, key):
    with pytest.raises(RecipeError) as caught:
        recipe.read(base, [override])
    assert (caught.value.key, caught.value.file) == (key, None)


def test_a_mistake_in_the_file_is_told_as_the_files_beside_an_override(base):
    base.write_text(BASE.replace("words = 5", 'words = "many"'))
    with pytest.raises(RecipeError) as caught:
        recipe.read(base, ["train.lr=2"])
    assert caught.value.file == base


def test_a_recipe_tells_which_keys_its_file_does_not_hold(base):
    read = recipe.read(base, ["optim.warmup=0.25", "train.optim.1.name=cosine"])
    assert read.file_of("train.optim[0].warmup") is None
    assert read.file_of("train.optim[1].floor") is None  # an option of the method that was given
    assert read.file_of("train.optim[0].floor") == base
    assert read.file_of("write.words") == base


JOINT = {
    "stage": [
        {
            "do": "train",
            "task": [{"name": "words"}, {"name": "pairs", "objective": "clip", "adapter": {"name": "patches", "size": 8}}],
        }
    ]
}


@pytest.mark.parametrize("key", ["train.task.pairs.weight", "task.pairs.weight", "task.1.weight"])
def test_a_task_is_reached_by_its_name(key):
    tasks = recipe.read(JOINT, [f"{key}=0.5"]).stages[0].plain()["task"]
    assert [task["weight"] for task in tasks] == [1.0, 0.5]


def test_of_two_entries_of_one_name_neither_is_reached_by_it():
    with pytest.raises(RecipeError, match="by number, role or name"):
        recipe.read({"stage": [{"do": "train", "optim": [{"role": "matrix", "name": "adamw"}, "adamw"]}]}, ["train.optim.adamw.lr=1.0"])


@pytest.mark.parametrize(
    ("override", "mend"),
    [
        ("train.task.pairs.wieght=0.5", "did you mean 'weight'?"),
        ("train.task.pairs.adapter.sise=4", "did you mean 'size'?"),
        ("train.schedule.lr.flor=0.1", "did you mean 'floor'?"),
        ("train.schedule.lr.warmpu=0.1", "did you mean 'warmup'?"),
        ("train.parallel.shrad=full", "did you mean 'shard'?"),
        ("train.model.experts.cuont=4", "did you mean 'count'?"),
        ("train.optim.0.rloe=matrix", "did you mean 'role'?"),
        ("train.optim.warmpu=0.1", "there is"),
        ("train.optim.embedding.lr=3", "entries are reached by number, role or name: there is optim.0 (matrix), optim.1 (adamw)"),
        ("train.task.paris.weight=3", "entries are reached by number, role or name: there is task.0 (words), task.1 (pairs)"),
        ("train.stpes=3", "did you mean 'steps'"),
    ],
)
def test_a_key_there_is_none_of_is_told_with_those_that_may_stand_there(override, mend):
    with pytest.raises(RecipeError) as caught:
        recipe.read(JOINT, [override])
    assert str(caught.value.mend).startswith(mend)


@pytest.mark.parametrize("override", ["train=3", "train.=3", ".train=3", "train..steps=3"])
def test_a_key_that_names_no_option_says_what_to_write(base, override):
    with pytest.raises(RecipeError) as caught:
        recipe.read(base, [override])
    assert str(caught.value.mend).startswith(("write key=value", "for example train."))


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("3.5", 3.5), ("true", True), ("[1, 2]", [1, 2]), ("word", "word"), ("a=b", "a=b"), ("{a = 1}", {"a": 1}), ("1e-3", 0.001), ("", "")],
)
def test_values_on_the_command_line(text, value):
    assert recipe.parse_value(text) == value
