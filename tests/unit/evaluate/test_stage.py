"""The stages evaluate and sample, through folders."""

import json

import pytest

from bessemer.core.artifact import seal
from bessemer.core.errors import BessemerError, DataError, RecipeError
from bessemer.core.registry import find, schema
from bessemer.core.work import Work
from bessemer.evaluate.evaluation import Evaluation
from bessemer.evaluate.held_out import held_out_bits_per_byte
from bessemer.models.package import Model, save_model
from bessemer.serve.generate import generate
from bessemer.serve.samples import Samples
from tests.unit.serve.toy import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def package(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    info = save_model(tiny(tokenizer.vocabulary_size), folder, tokenizer=tokenizer)
    seal(folder, "model", recipe={}, parents={}, info=info)
    return Model.open(folder)


def run(name, work, *artifacts, **options):
    """A stage as the runner calls it: options checked against its signature, then sealed and opened."""
    stage = find("run/stages", name)
    made = schema(stage).model_validate(options)
    result = stage(work, *artifacts, **{key: getattr(made, key) for key in type(made).model_fields})
    seal(work.out, type(result).kind, recipe=options, parents={}, info=work.info)
    return type(result).open(work.out)


def test_evaluates_bits_per_byte_and_files(package, tokenizer, tokens, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "the", "choices": ["a", "b"], "answer": 0}) + "\n")
    (tmp_path / "out").mkdir()
    work = Work(tmp_path / "out", seed=3)
    tasks = [{"name": "bits_per_byte", "limit": "all"}, {"name": "multiple_choice", "file": str(tmp_path / "q.jsonl"), "label": "mine"}]
    found = run("evaluate", work, package, tokenizer, tokens, tasks=tasks)
    assert isinstance(found, Evaluation)
    straight = held_out_bits_per_byte(package.build(), tokens, length=128)
    assert {name: found.figures["bits_per_byte"][name]["value"] for name in straight} == pytest.approx(straight)
    assert found.figures["mine"]["accuracy"]["count"] == 1
    assert found.info["bits_per_byte"]["all"] == pytest.approx(found.figures["bits_per_byte"]["all"]["value"], abs=1e-6)


def test_evaluation_needs_the_store_it_reads_and_the_tokenizer_that_made_it(package, tokenizer, tokens, tmp_path):
    with pytest.raises(DataError, match="no token store"):
        run("evaluate", Work(tmp_path), package, tokenizer, None)
    with pytest.raises(DataError, match="these tokens were made with tokenizer"):
        run("evaluate", Work(tmp_path), package, byte_tokenizer(tmp_path / "other"), tokens)


def test_samples_are_what_generate_gives(package, tokenizer, tmp_path):
    work = Work(tmp_path, seed=9)
    found = run("sample", work, package, tokenizer, prompts=["the cat", ""], count=2, max_tokens=6, temperature=0.9)
    assert isinstance(found, Samples)
    wanted = generate(package.build(), tokenizer, ["the cat", "the cat", "", ""], max_tokens=6, temperature=0.9, top_p=0.95, seed=9)
    assert [(each["prompt"], each["text"], each["finish"]) for each in found.samples] == [(g.prompt, g.text, g.finish) for g in wanted]
    assert found.info["texts"] == 4
    assert found.info["tokens"] == sum(len(g.tokens) for g in wanted)


def test_samples_refuse_nothing_to_do_and_wrong_settings(package, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="nothing to write"):
        run("sample", Work(tmp_path, name="sample"), package, tokenizer, prompts=[])
    with pytest.raises(BessemerError, match="out of range"):
        run("sample", Work(tmp_path), package, tokenizer, temperature=-0.5)
    small = tmp_path / "small"
    save_model(tiny(100), small)
    seal(small, "model", recipe={}, parents={}, info={})
    with pytest.raises(BessemerError, match="and the model 100"):
        run("sample", Work(tmp_path), Model.open(small), tokenizer)
