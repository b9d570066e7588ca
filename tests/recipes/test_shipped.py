"""Every shipped recipe, from text to report, at its smallest."""

import json

import pytest

from bessemer.cli import main
from bessemer.core.registry import PACKAGE

RECIPES = sorted((PACKAGE.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_through(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", recipe.stem, "--smoke", "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    stages = said["stages"]
    kinds = {stage["kind"]: stage for stage in stages.values()}
    assert {"corpus", "tokenizer", "tokens", "model", "evaluation", "samples", "export", "report"} <= kinds.keys()
    assert all(domain["documents"] for domain in stages["tokenize"]["info"]["held_out"].values()), "every domain has something to measure"
    assert kinds["model"]["info"]["progress"]["step"] == 4
    assert {"code", "prose", "all"} <= kinds["evaluation"]["info"]["bits_per_byte"].keys()
    assert (tmp_path / said["folder"] / "report" / "report.html").stat().st_size > 50_000
    assert main(["run", recipe.stem, "--smoke", "--quiet", "--json"]) == 0
    assert not any(stage["made"] for stage in json.loads(capsys.readouterr().out)["stages"].values()), "a second run redoes nothing"
