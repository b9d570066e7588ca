"""Bits per byte: every byte once, sums before quotients, whatever the rows."""

import math

import numpy as np
import pytest
import torch

from bessemer.core.errors import BessemerError, DataError, RecipeError
from bessemer.evaluate.held_out import document_sums, held_out_bits_per_byte
from bessemer.evaluate.subject import Subject
from bessemer.evaluate.tasks.bits_per_byte import bits_per_byte
from tests.unit.serve.toy import byte_tokenizer, tiny


def bits_of(model, tokenizer, text):
    """The bits of one text that fits the context, straight from the full logits."""
    whole = torch.tensor([[tokenizer.begin, *tokenizer.encode(text)]])
    with torch.no_grad():
        table = model(whole)[:, :-1].double().log_softmax(-1)
    return -table.gather(-1, whole[:, 1:, None]).sum().item() / math.log(2)


@pytest.mark.parametrize("rows", [1, 3])
def test_equals_the_full_logits_document_by_document(tokenizer, tokens, texts, rows):
    model = tiny(tokenizer.vocabulary_size, length=1024)
    sums = document_sums(model, tokens, length=1024, rows=rows)
    by_text = {len(text.encode()): bits_of(model, tokenizer, text) for text, _ in texts if text}
    assert len(sums.document) == 6
    for document, bits, size in zip(sums.document, sums.bits, sums.bytes, strict=True):
        assert size == tokens.bytes[document]
        assert bits == pytest.approx(by_text[int(size)], rel=1e-5)


@pytest.mark.parametrize("length", [8, 64, 128])
def test_every_byte_counts_once_however_documents_are_cut(model, tokens, texts, length):
    sums = document_sums(model, tokens, length=length, rows=2)
    assert sums.bytes.sum() == sum(len(text.encode()) for text, _ in texts)
    assert sums.tokens.sum() == sum(tokens.lengths - 1)


def test_domains_are_quotients_of_sums(model, tokens, tokenizer):
    found = held_out_bits_per_byte(model, tokens, length=128, rows=2)
    assert set(found) == {"code", "prose"}
    figures = bits_per_byte(Subject(model, tokenizer, tokens), length=128, limit="all")
    sums = document_sums(model, tokens, length=128, rows=8)
    for name in found:
        mine = np.isin(sums.document, tokens.documents("held_out", "domain", name))
        assert found[name] == pytest.approx(sums.bits[mine].sum() / sums.bytes[mine].sum(), rel=1e-6)
        assert figures[name] == pytest.approx(found[name], rel=1e-6)
        assert figures[name].low <= figures[name] <= figures[name].high
        assert figures[name].better == "lower"
    assert figures["all"] == pytest.approx(sums.bits.sum() / sums.bytes.sum(), rel=1e-6)
    assert figures["all"].count == 6


def test_a_limit_takes_fewer_documents_and_the_model_stays_in_training(tokenizer, tokens):
    model = tiny(tokenizer.vocabulary_size).train()
    sums = document_sums(model, tokens, length=128, rows=2, limit=1)
    assert len(sums.document) == 1
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_missing_store_another_vocabulary_and_numbers_out_of_range_are_refused(model, tokenizer, tokens, tmp_path):
    with pytest.raises(DataError, match="no token store"):
        bits_per_byte(Subject(model, tokenizer))
    with pytest.raises(BessemerError, match="vocabulary"):
        document_sums(tiny(100), tokens, length=64, rows=1)
    with pytest.raises(BessemerError, match="and the model 100"):
        Subject(tiny(100), byte_tokenizer(tmp_path))
    for wrong in ({"rows": 0}, {"length": 0}, {"limit": 0}):
        with pytest.raises(RecipeError, match="too small") as caught:
            bits_per_byte(Subject(model, tokenizer, tokens), **wrong)
        assert caught.value.key == f"bits_per_byte.{next(iter(wrong))}"
