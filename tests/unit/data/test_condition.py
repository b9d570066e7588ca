"""What is told before a document: read first, counted or not, and gone in the cooldown."""

import json

import numpy as np
import pytest
import torch

from bessemer.core.errors import DataError, RecipeError
from bessemer.core.progress import Progress
from bessemer.core.registry import choose
from bessemer.data.corpus import write_corpus
from bessemer.data.document import Document
from bessemer.data.loader import Loader
from tests.unit.data.test_loader import same, stretches
from tests.unit.data.token_stores import small_tokenizer, small_tokens, store


def prefixes(name, **options):
    return choose("data/condition", {"name": name, **options})(small_tokenizer(), small_tokens(), 0)


def loader(made, **options):
    return Loader(small_tokens(), **({"length": 96, "mix": None, "seed": 3, "prefixes": made} | options))


def documents(made):
    """Every training document as it is laid out in one epoch: (tokens read, targets, weights), whole ones only."""
    for start in range(made.epoch):
        batch = made.batch(start, 1)
        at = 0
        for read, targets, _ in stretches(batch, 0):
            weights = batch.weights["next_token"][0][at : at + len(targets)].tolist()
            at += len(targets)
            if read[0] == small_tokens().begin and targets[-1] == small_tokens().end:
                yield read, targets, weights


def test_metadata_is_read_before_the_text_and_not_predicted():
    tokens, tokenizer = small_tokens(), small_tokenizer()
    texts = {tuple(tokens.read(d)): d for d in tokens.documents("train")}
    seen = 0
    for read, targets, weights in documents(loader(prefixes("metadata", cooldown=0.0))):
        told = weights.count(0.0)
        assert weights == [0.0] * told + [1.0] * (len(targets) - told)
        document = texts[tuple(targets[told:])]
        wanted = f"source: {tokens.sources[tokens.source[document]]}\ndomain: {tokens.domains[tokens.domain[document]]}\n\n"
        assert tokenizer.decode(targets[:told]) == wanted
        assert read[1:] == targets[:-1]
        seen += 1
    assert seen > len(texts) / 2


def test_every_text_token_is_a_target_once_and_no_told_one_is():
    tokens = small_tokens()
    made = loader(prefixes("metadata", cooldown=0.0), length=16)
    counts = sum(float(made.batch(start, 1).weights["next_token"].sum()) for start in range(made.epoch))
    assert counts == tokens.lengths[~tokens.held_out].sum()


def test_the_cooldown_reads_bare_documents_and_is_recorded():
    made, plain = loader(prefixes("metadata", cooldown=0.25)), loader(None)
    for step in range(20):
        made.follow(Progress(step=step, steps=20), 3 * step, dict)
        batch = made.batch(3 * step, 3)
        assert same(batch, plain.batch(3 * step, 3)) == (step >= 15)
    again = loader(prefixes("metadata", cooldown=0.25))
    again.restore(json.loads(json.dumps(made.state())))
    assert same(again.batch(57, 3), made.batch(57, 3))
    assert same(again.batch(30, 3), made.batch(30, 3))


def test_markers_are_predicted_and_some_documents_have_none():
    tokens = small_tokens()
    made = prefixes("markers", facts=["domain"], drop=0.4)
    told = np.array([len(ids) for ids in made.ids])[made.which] > 0
    assert abs(told.mean() - 0.6) < 0.12
    domains = [tokens.domains[number] for number in tokens.domain]
    for ids, which in zip(made.ids, range(len(made.ids)), strict=True):
        for document in np.flatnonzero(made.which == which)[:5]:
            assert small_tokenizer().decode(ids.tolist()) in ("", f"<domain>{domains[document]}</domain>")
    assert all(set(weights) == {1.0} for _, _, weights in documents(loader(made)))
    assert any(float(loader(prefixes("markers", learned=False)).batch(n, 1).weights["next_token"].min()) == 0 for n in range(3))


def test_two_markers_are_dropped_independently():
    made = prefixes("markers", facts=["domain", "source"], drop=0.5)
    texts = [small_tokenizer().decode(made.ids[which].tolist()) for which in made.which]
    has = np.array([["<domain>" in text, "<source>" in text] for text in texts])
    assert {tuple(row) for row in has.tolist()} == {(a, b) for a in (False, True) for b in (False, True)}
    assert torch.equal(torch.tensor(has), torch.tensor([["</domain>" in text, "</source>" in text] for text in texts]))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("metadata", {"facts": []}, "nothing to tell"),
        ("metadata", {"cooldown": 1.0}, "below 1"),
        ("markers", {"drop": 1.0}, "below 1"),
        ("markers", {"facts": []}, "nothing to tag"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, says):
    with pytest.raises(RecipeError, match=says):
        prefixes(name, **options)


def test_the_store_keeps_hosts_and_what_else_it_is_told(tmp_path):
    told = [{"url": "https://en.wikipedia.org/wiki/Row", "year": 2020}, {"url": "http://docs.python.org/3"}, {}]
    texts = [Document(f"text number {n} of some length", "web", "prose", str(n), told[n % 3]) for n in range(30)]
    made = store(write_corpus(tmp_path / "corpus", texts), small_tokenizer(), facts=["url", "year"])
    numbers, values = made.fact("url")
    found = {tuple(made.read(d)): values[numbers[d]] for d in range(30)}
    wanted = ["en.wikipedia.org", "docs.python.org", ""]
    assert all(found[(*small_tokenizer().encode(text.text), made.end)] == wanted[n % 3] for n, text in enumerate(texts))
    found = choose("data/condition", {"name": "metadata", "facts": ["url", "year"]})(small_tokenizer(), made, 0)
    said = {small_tokenizer().decode(ids.tolist()) for ids in found.ids}
    assert said == {"url: en.wikipedia.org\nyear: 2020\n\n", "url: docs.python.org\n\n", ""}
    again = store(write_corpus(tmp_path / "again", texts), small_tokenizer(), facts=["url", "year"], reuse=str(made.folder))
    assert again.fact("url")[0].tolist() == made.fact("url")[0].tolist()
    assert again.info["shards_taken_over"] == again.info["shards"]
    bare = store(write_corpus(tmp_path / "bare", texts), small_tokenizer(), reuse=str(made.folder))
    assert bare.facts == ["domain", "source"]


def test_a_fact_the_store_does_not_keep_is_told_how_to_be_kept():
    with pytest.raises(DataError, match=r"tokenize with facts = \[\"url\"\]"):
        prefixes("metadata", facts=["url"])
