"""Every hook reads reports and no other hook; every stage takes work and artifacts and says which artifact it makes."""

import ast
import inspect

import pytest

from bessemer.core import recipe, registry
from bessemer.core.artifact import Artifact
from bessemer.run import wiring


@pytest.mark.parametrize("name", registry.names("train/hooks"))
def test_a_hook_is_asked_called_and_closed_and_knows_no_other(name):
    hook = registry.find("train/hooks", name)
    for method, given in (("due", 1), ("__call__", 1), ("close", 0)):
        inspect.signature(getattr(hook, method)).bind(None, *[None] * given)
    for node in ast.walk(ast.parse((registry.PACKAGE / "train/hooks" / f"{name}.py").read_text())):
        imported = (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
        assert not [module for module in imported if module.startswith("bessemer.train.hooks")]


@pytest.mark.parametrize("name", registry.names("run/stages"))
def test_a_stage_is_wired_by_its_annotations(name):
    stage = registry.find(recipe.STAGES, name)
    assert next(iter(inspect.signature(stage).parameters)) == "work"
    made = recipe.Stage(name, registry.Choice(recipe.STAGES, name, {}))
    inputs, makes = wiring._signature(stage, recipe.Recipe("r", 0, [made], None), made)
    assert all(issubclass(wanted, Artifact) for _, wanted, *_ in inputs)
    assert issubclass(makes, Artifact)
    assert makes.kind
