"""The lm-eval adapter: its three kinds of request, and a task of our own run by the harness, offline."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from bessemer.core.errors import BessemerError, RecipeError
from bessemer.evaluate.harness_model import Answers
from bessemer.evaluate.likelihood import likelihoods, whole_likelihoods
from bessemer.evaluate.subject import Subject
from bessemer.evaluate.tasks.harness import harness
from bessemer.serve.generate import generate

HERE = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HERE, reason="lm-eval is not installed: pip install 'bessemer[harness]'")
QUESTIONS = [("the cat", ["sat", "ab ab", "x"], 1), ("one", ["two", "three"], 0), ("q", ["a", "b", "c"], 2), ("ab", ["the", "cat"], 0)]


@pytest.fixture(scope="module")
def subject(model, tokenizer):
    return Subject(model, tokenizer)


@pytest.fixture(scope="module")
def answers(subject):
    made = Answers()
    made.subject, made.rows, made.max_tokens = subject, 4, 8
    return made


def requests(*args):
    return [SimpleNamespace(args=each) for each in args]


def test_answers_likelihoods(answers, subject):
    pairs = [("the cat", " sat"), ("", "ab")]
    wanted = [(each.log_probability, each.greedy) for each in likelihoods(subject, pairs)]
    assert answers.loglikelihood(requests(*pairs)) == wanted
    texts = ["the cat " * 60, "ab"]
    rolling = answers.loglikelihood_rolling(requests(*((text,) for text in texts)))
    assert rolling == pytest.approx([each.log_probability for each in whole_likelihoods(subject, texts)])


def test_writes_in_the_order_of_the_requests_with_each_ones_settings(answers, subject):
    found = answers.generate_until(
        requests(
            ("the cat", {"until": ["\n"], "max_gen_toks": 5}),
            ("ab", {"until": "q"}),
            ("one", {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}),
        )
    )
    for text, (prompt, count, stop) in zip(found, [("the cat", 5, "\n"), ("ab", 8, "q"), ("one", 5, "\n")], strict=True):
        assert text == generate(subject.model, subject.tokenizer, [prompt], max_tokens=count, temperature=0, stop=[stop])[0].text


def test_a_setting_we_do_not_have_is_refused(answers):
    with pytest.raises(BessemerError, match="num_beams"):
        answers.generate_until(requests(("a", {"num_beams": 4})))


@pytest.mark.skipif(HERE, reason="lm-eval is installed")
def test_says_how_to_get_the_harness(subject):
    with pytest.raises(BessemerError, match="not installed") as caught:
        harness(subject, tasks=["x"])
    assert "bessemer[harness]" in caught.value.mend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks of our own: choosing and writing."""
    place = tmp_path_factory.mktemp("tasks")
    (place / "data.jsonl").write_text("".join(json.dumps({"question": q, "choices": c, "answer": a, "text": q}) + "\n" for q, c, a in QUESTIONS))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {place / 'data.jsonl'}\ntest_split: test\n"
    (place / "own_choice.yaml").write_text(
        f"task: own_choice\noutput_type: multiple_choice\n{common}"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n'
    )
    (place / "own_writing.yaml").write_text(
        f"task: own_writing\noutput_type: generate_until\n{common}"
        'doc_to_text: "{{question}}"\ndoc_to_target: "x"\ngeneration_kwargs:\n  until: ["a"]\n  max_gen_toks: 4\nmetric_list:\n  - metric: exact_match\n'
    )
    (place / "own_rolling.yaml").write_text(
        f'task: own_rolling\noutput_type: loglikelihood_rolling\n{common}doc_to_text: ""\ndoc_to_target: "{{{{question}}}}"\n'
        "metric_list:\n  - metric: byte_perplexity\n"
    )
    return place


@needs_harness
def test_a_task_of_our_own_through_the_harness(subject, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    found = harness(subject, tasks=["own_choice", "own_writing", "own_rolling"], folder=str(folder))
    right = 0
    for question, choices, answer in QUESTIONS:
        scores = [each.log_probability for each in likelihoods(subject, [(question, " " + choice) for choice in choices])]
        right += scores.index(max(scores)) == answer
    assert found["own_choice/acc"] == right / 4
    assert found["own_choice/acc"].count == 4
    assert found["own_choice/acc"].low <= right / 4 <= found["own_choice/acc"].high
    assert 0 <= found["own_writing/exact_match"] <= 1
    scored = whole_likelihoods(subject, [question for question, _, _ in QUESTIONS])
    import math

    wanted = math.exp(-sum(each.log_probability for each in scored) / sum(each.bytes for each in scored))
    assert found["own_rolling/byte_perplexity"] == pytest.approx(wanted, rel=1e-5)
    assert found["own_rolling/byte_perplexity"].better == "lower"


@needs_harness
def test_tasks_and_folders_that_are_not_there_are_refused(subject, folder, tmp_path):
    with pytest.raises(RecipeError, match="no task 'own_choise'") as caught:
        harness(subject, tasks=["own_choise"], folder=str(folder))
    assert "own_choice" in (caught.value.mend or "")
    with pytest.raises(RecipeError, match="no such folder"):
        harness(subject, tasks=["x"], folder=str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="names no task"):
        harness(subject, tasks=[])
