"""Choosing among given answers."""

from __future__ import annotations

from typing import Any, NamedTuple

from bessemer.evaluate.examples import read_examples, text_of
from bessemer.evaluate.figure import Figure, ratio
from bessemer.evaluate.likelihood import likelihoods
from bessemer.evaluate.subject import Subject


class Question(NamedTuple):
    """One example: what is asked, the answers offered, and which of them is right."""

    question: str
    choices: list[str]
    answer: int


def multiple_choice(subject: Subject, *, file: str, separator: str = " ", limit: int | None = None, rows: int = 16) -> dict[str, Figure]:
    """Which of several answers the model finds most likely after a question (Brown et al. 2020, section 2.4).

    `accuracy` takes the answer of the highest log-probability, `accuracy_by_bytes` of the highest log-probability for each
    byte, so that short answers have no advantage; `chance` is what guessing gives. Of equal answers the first is taken.

    Args:
        file: JSONL with `question`, `choices` (at least two) and `answer`, the right one's index from 0.
        separator: what stands between question and answer.
        limit: take only so many questions.
        rows: answers scored at once.

    Raises:
        DataError: the file or a line of it is not as it must be.
    """
    questions = read_examples(file, _parse, subject.few(limit, 8))
    found = likelihoods(subject, [(each.question, separator + choice) for each in questions for choice in each.choices], rows=rows)
    plain, normed, chance = [], [], []
    place = 0
    for each in questions:
        scores = found[place : place + len(each.choices)]
        place += len(each.choices)
        sizes = [len(choice.encode()) for choice in each.choices]
        plain.append(float(_best([s.log_probability for s in scores]) == each.answer))
        normed.append(float(_best([s.log_probability / size for s, size in zip(scores, sizes, strict=True)]) == each.answer))
        chance.append(1 / len(each.choices))
    ones, key = [1.0] * len(questions), f"multiple_choice/{file}"
    expected = sum(chance) / len(chance)
    return {
        "accuracy": ratio(plain, ones, subject.seed, key),
        "accuracy_by_bytes": ratio(normed, ones, subject.seed, key),
        "chance": Figure(expected, expected, expected, len(questions)),
    }


def _best(scores: list[float]) -> int:
    return scores.index(max(scores))


def _parse(table: dict[str, Any]) -> Question:
    question = text_of(table, "question")
    for column in ("choices", "answer"):
        if column not in table:
            raise ValueError(f"has no '{column}'; it has {', '.join(map(repr, table))}")
    choices, answer = table["choices"], table["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"'choices' must be a list of two or more texts, none of them empty, and it is {choices!r}")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise ValueError(f"'answer' must be the index of the right choice, and it is {answer!r}")
    if not 0 <= answer < len(choices):
        raise ValueError(f"'answer' is {answer}, and the {len(choices)} choices are numbered 0 to {len(choices) - 1}")
    return Question(question, choices, answer)
