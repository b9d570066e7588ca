"""Tasks from files: figures are what the likelihoods say, and mistakes in files are named with their line."""

import json

import pytest

from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import choose
from bessemer.evaluate.evaluation import measure
from bessemer.evaluate.likelihood import likelihoods
from bessemer.evaluate.subject import Subject
from bessemer.evaluate.tasks.cloze import cloze
from bessemer.evaluate.tasks.multiple_choice import multiple_choice


@pytest.fixture(scope="module")
def subject(model, tokenizer):
    return Subject(model, tokenizer)


@pytest.fixture
def write(tmp_path):
    def put(*lines):
        file = tmp_path / "examples.jsonl"
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(file)

    return put


QUESTIONS = [
    {"question": "the cat", "choices": ["sat", "ab ab ab", "x"], "answer": 2},
    {"question": "one", "choices": ["two", "three and four"], "answer": 0},
    {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1},
]


def test_multiple_choice_takes_the_likeliest(subject, write):
    plain = normed = 0
    for each in QUESTIONS:
        scores = [found.log_probability for found in likelihoods(subject, [(each["question"], " " + choice) for choice in each["choices"]])]
        plain += scores.index(max(scores)) == each["answer"]
        by_bytes = [score / len(choice) for score, choice in zip(scores, each["choices"], strict=True)]
        normed += by_bytes.index(max(by_bytes)) == each["answer"]
    found = multiple_choice(subject, file=write(*QUESTIONS))
    assert (found["accuracy"], found["accuracy_by_bytes"]) == (plain / 3, normed / 3)
    assert found["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert found["accuracy"].count == 3


def test_multiple_choice_marks_the_right_answer(subject, write):
    """With each choice in turn as the answer, exactly one of them is what the model takes."""
    for each in QUESTIONS:
        hits = [multiple_choice(subject, file=write(each | {"answer": answer}))["accuracy"] for answer in range(len(each["choices"]))]
        assert sum(hits) == 1


def test_cloze_scores_the_last_word_or_the_given_span(subject, write):
    by_text = cloze(subject, file=write({"text": "the cat sat on the mat"}))
    by_span = cloze(subject, file=write({"context": "the cat sat on the", "target": " mat"}))
    assert {k: v.plain() for k, v in by_text.items()}.keys() == {"accuracy", "log_probability", "bits_per_byte"}
    assert by_text["log_probability"] == by_span["log_probability"]
    (wanted,) = likelihoods(subject, [("the cat sat on the", " mat")])
    assert by_text["log_probability"] == pytest.approx(wanted.log_probability)
    assert by_text["bits_per_byte"] == pytest.approx(-wanted.log_probability / 0.6931471805599453 / 4)


def test_cloze_counts_what_the_model_would_write(subject, write):
    from bessemer.serve.generate import generate

    prompts = [f"{a} {b}" for a in ("the", "ab", "q", "cat") for b in ("x", "mat", "ab")]
    written = [each for each in generate(subject.model, subject.tokenizer, prompts, max_tokens=1, temperature=0) if each.text.isascii() and each.text]
    right = [{"context": each.prompt, "target": each.text} for each in written]
    right = [r for r in right if subject.tokenizer.encode(r["context"] + r["target"])[:-1] == subject.tokenizer.encode(r["context"])]
    assert right
    assert cloze(subject, file=write(*right))["accuracy"] == 1.0
    assert cloze(subject, file=write(*({**r, "target": "Z" if r["target"] != "Z" else "Y"} for r in right)))["accuracy"] == 0.0


def test_limits_take_the_first_examples(subject, write):
    assert multiple_choice(subject, file=write(*QUESTIONS), limit=2)["accuracy"].count == 2
    assert cloze(subject, file=write({"text": "a b"}, "", "not json"), limit=1)["accuracy"].count == 1


@pytest.mark.parametrize(
    ("task", "lines", "line", "problem"),
    [
        (multiple_choice, [QUESTIONS[0], "{broken"], 2, "no JSON"),
        (multiple_choice, [QUESTIONS[0], "", "[1, 2]"], 3, "no JSON table"),
        (multiple_choice, [{"choices": ["a", "b"], "answer": 0}], 1, "no 'question'; it has 'choices', 'answer'"),
        (multiple_choice, [{"question": "a", "answer": 0}], 1, "no 'choices'"),
        (multiple_choice, [{"question": "a", "choices": ["a", "b"]}], 1, "no 'answer'"),
        (multiple_choice, [{"question": "a", "choices": ["a", "b"], "answer": 2}], 1, "'answer' is 2, and the 2 choices are numbered 0 to 1"),
        (multiple_choice, [{"question": "a", "choices": ["a", "b"], "answer": -1}], 1, "'answer' is -1"),
        (multiple_choice, [{"question": "a", "choices": ["a", "b"], "answer": "a"}], 1, "index of the right choice"),
        (multiple_choice, [{"question": "a", "choices": ["a", "b"], "answer": True}], 1, "index of the right choice"),
        (multiple_choice, [{"question": "a", "choices": ["a"], "answer": 0}], 1, "two or more"),
        (multiple_choice, [{"question": "a", "choices": ["a", ""], "answer": 0}], 1, "two or more"),
        (multiple_choice, [{"question": 3, "choices": ["a", "b"], "answer": 0}], 1, "'question' must be text"),
        (cloze, [{"text": "a b"}, {"txt": "a b"}], 2, "no 'text'; it has 'txt'"),
        (cloze, [{"context": "a"}], 1, "no 'target'"),
        (cloze, [{"context": "a", "target": ""}], 1, "'target' is empty"),
        (cloze, [{"text": "alone"}], 1, "no word before"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(subject, write, task, lines, line, problem):
    file = write(*lines)
    with pytest.raises(DataError, match=problem) as caught:
        task(subject, file=file)
    assert str(caught.value.file) == file
    assert caught.value.key == f"line {line}"


def test_files_that_are_missing_empty_or_not_utf8_are_refused(subject, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        cloze(subject, file=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="can't be read"):
        cloze(subject, file=str(tmp_path))
    (tmp_path / "a").write_text("\n\n")
    with pytest.raises(DataError, match="holds no example"):
        cloze(subject, file=str(tmp_path / "a"))
    (tmp_path / "b").write_bytes(b'{"text": "a b"}\n{"text": "\xff b"}\n')
    with pytest.raises(DataError, match="not UTF-8") as caught:
        cloze(subject, file=str(tmp_path / "b"))
    assert caught.value.key == "line 2"


def test_measuring_keeps_labels_apart(subject, write):
    file = write(*QUESTIONS)
    kind = "evaluate/tasks"
    one, two = (choose(kind, {"name": "multiple_choice", "file": file, "label": label}, {"label": str}) for label in ("one", "two"))
    assert list(measure(subject, [one, two])) == ["one", "two"]
    with pytest.raises(RecipeError, match="two tasks are called 'one'"):
        measure(subject, [one, one])
    with pytest.raises(RecipeError, match="nothing to measure"):
        measure(subject, [])
