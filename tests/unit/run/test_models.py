"""What the commands do with a model: evaluating it with text of its own tokenizer only."""

from __future__ import annotations

from pathlib import Path

import pytest

from bessemer.cli import main
from bessemer.core.artifact import seal
from bessemer.core.registry import choose
from bessemer.core.work import Work
from bessemer.data.store import write_store
from bessemer.models.package import save_model
from bessemer.run.stages.collect_examples import collect_examples
from tests.corpus import corpus
from tests.unit.serve.toy import byte_tokenizer, tiny


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs with tokenizers of one size that cut text otherwise: a corpus, tokens and a model in each."""
    monkeypatch.chdir(tmp_path)
    for name, merges in (("one", [("t", "h"), ("a", "b")]), ("other", [("e", "r"), ("o", "n")])):
        text = corpus(tmp_path / name / "collect", 30)
        tokenizer = byte_tokenizer(tmp_path / name / "tokenizer", merges)
        seal(tmp_path / name / "collect", "corpus", recipe={}, parents={}, info={})
        (tmp_path / name / "tokenize").mkdir()
        info = write_store(text, tokenizer, tmp_path / name / "tokenize", held_out=0.5, processes=1)
        seal(tmp_path / name / "tokenize", "tokens", recipe={}, parents={}, info=info)
        info = save_model(tiny(tokenizer.vocabulary_size), tmp_path / name / "train", tokenizer=tokenizer)
        seal(tmp_path / name / "train", "model", recipe={}, parents={}, info=info)
    return tmp_path


def test_tokens_of_another_tokenizer_are_not_measured_and_the_mend_measures_their_text(runs, capsys):
    assert main(["evaluate", "one", "--quiet"]) == 0
    assert main(["evaluate", "one", "--data", "other", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "these tokens were made with tokenizer" in said
    stages = 'load_tokenizer with path = "one/train", tokenize with inputs = { corpus = "other" }, evaluate with inputs = { model = "one/train" }'
    assert stages in said
    (runs / "r.toml").write_text(
        '[[stage]]\ndo = "load_tokenizer"\npath = "one/train"\n'
        '[[stage]]\ndo = "tokenize"\ninputs = { corpus = "other" }\nheld_out = 0.5\nprocesses = 1\n'
        '[[stage]]\ndo = "evaluate"\ninputs = { model = "one/train" }\n'
    )
    assert main(["run", "r.toml", "--quiet"]) == 0


def test_the_examples_of_the_models_run_are_measured(runs, capsys):
    assert main(["evaluate", "one", "linear_probe", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "there are 0 example stores" in said
    assert "in the run that is measured" in said
    work = Work(runs / "one/pictures")
    work.out.mkdir()
    collect_examples(work, sources=[choose("data/examples", {"name": "scenes", "count": 8})])
    seal(work.out, "examples", recipe={}, parents={}, info=work.info)
    (runs / "one/run.json").write_text('{"recipe": "one"}')
    assert main(["evaluate", "one", "linear_probe", "--quiet"]) == 2
    assert "the model has no adapter" in capsys.readouterr().err


def test_a_model_is_told_to_be_an_earlier_trainings(runs, capsys):
    told = "one/train is an earlier training's model"
    commands = (["generate", "one", "--prompt", "a", "--max-tokens", "1"], ["evaluate", "one"], ["export", "one", "--out", "exported"])
    for command in commands:
        assert main([*command, "--quiet"]) == 0
        assert told not in capsys.readouterr().err
    (runs / "one/.train.12345678.partial").mkdir()
    for command in commands:
        assert main([*command, "--quiet"]) == 0
        assert told in capsys.readouterr().err
