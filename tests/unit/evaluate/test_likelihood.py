"""Likelihoods: those of the full logits, one by one, whatever they are batched with."""

import pytest
import torch

from bessemer.core.errors import BessemerError
from bessemer.evaluate.likelihood import likelihoods, split, whole_likelihoods
from bessemer.evaluate.subject import Subject
from tests.unit.serve.toy import tiny

PAIRS = [("the cat", " sat on"), ("", "ab ab"), ("x", "y"), ("a long context " * 5, " and so on"), ("1 + 1 =", " 2")]


def straight(model, read, count):
    """log p of the last `count` tokens, and whether each is the best."""
    with torch.no_grad():
        table = model(torch.tensor([read]))[0, -count - 1 : -1].double().log_softmax(-1)
    targets = torch.tensor(read[-count:])
    return table.gather(-1, targets[:, None]).sum().item(), bool((table.argmax(-1) == targets).all())


@pytest.fixture(scope="module")
def subject(model, tokenizer):
    return Subject(model, tokenizer)


def test_equal_the_full_logits(subject, tokenizer):
    for rows in (1, 5):
        for (context, continuation), found in zip(PAIRS, likelihoods(subject, PAIRS, rows=rows), strict=True):
            before, after = split(tokenizer, context, continuation)
            value, greedy = straight(subject.model, [tokenizer.begin, *before, *after], len(after))
            assert found.log_probability == pytest.approx(value, rel=1e-5)
            assert (found.greedy, found.tokens, found.bytes) == (greedy, len(after), len(continuation.encode()))


def test_greedy_is_told(subject, tokenizer):
    from bessemer.serve.generate import generate

    found = next(each for each in generate(subject.model, tokenizer, ["the", "ab", "q", "z z"], max_tokens=2, temperature=0) if "�" not in each.text)
    context = found.prompt
    if tokenizer.encode(context + found.text) == tokenizer.encode(context) + found.tokens:
        assert likelihoods(subject, [(context, found.text)])[0].greedy


def test_continuation_begins_with_the_first_token_that_reaches_into_it(tokenizer):
    assert split(tokenizer, "x", " ab") == (tokenizer.encode("x"), tokenizer.encode(" ab"))
    before, after = split(tokenizer, "x t", "he")
    assert before + after == tokenizer.encode("x the")
    assert tokenizer.decode(after) == "the"
    assert split(tokenizer, "", "ab") == ([], tokenizer.encode("ab"))


def test_long_contexts_lose_their_beginning(subject, tokenizer):
    found = likelihoods(subject, [("x" * 500, "yz")])[0]
    read = tokenizer.encode("x" * 500 + "yz")[-129:]
    assert found.log_probability == pytest.approx(straight(subject.model, read, 2)[0], rel=1e-5)


def test_whole_texts_score_every_token_once(subject, tokenizer):
    long = "the ab q " * 60
    short, found = whole_likelihoods(subject, ["the cat", long])
    assert short.log_probability == pytest.approx(straight(subject.model, [tokenizer.begin, *tokenizer.encode("the cat")], short.tokens)[0], rel=1e-5)
    ids = tokenizer.encode(long)
    assert found.tokens == len(ids)
    read, total = [tokenizer.begin, *ids], 0.0
    for start in range(0, len(ids), 128):
        end = min(start + 128, len(ids))
        total += straight(subject.model, read[max(0, end - 128) : end + 1], end - start)[0]
    assert found.log_probability == pytest.approx(total, rel=1e-5)


def test_nothing_to_score_and_too_much_are_refused(subject):
    with pytest.raises(BessemerError, match="continuation is empty") as caught:
        likelihoods(subject, [("a", "b"), ("a", "")])
    assert caught.value.key == "request 2"
    with pytest.raises(BessemerError, match="the model reads 128"):
        likelihoods(subject, [("a", "x" * 200)])


def test_rows_of_a_model_with_windows_and_tied_head(tokenizer):
    subject = Subject(tiny(tokenizer.vocabulary_size, window=5, tied=True), tokenizer)
    alone = [likelihoods(subject, [pair])[0] for pair in PAIRS]
    for one, many in zip(alone, likelihoods(subject, PAIRS), strict=True):
        assert one.log_probability == pytest.approx(many.log_probability, rel=1e-5)
