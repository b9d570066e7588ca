"""Folded rows: the same columns and the same gradients, for less attention."""

import pytest
import torch

from bessemer.core import registry
from bessemer.core.batch import Batch
from bessemer.data.fold import folded
from bessemer.data.loader import Loader
from bessemer.models.attach import attach
from bessemer.objectives._examples import FromExamples
from bessemer.train.engine import Engine
from bessemer.train.source import Feed
from tests.unit.data.token_stores import small_tokens
from tests.unit.objectives import pictures, words

TEXT = [name for name in registry.names("objectives") if not issubclass(registry.find("objectives", name), FromExamples)]


def pieces(length=64, seed=0):
    """Rows of pieces of one power of two each, the last with padding."""
    draw, rows = torch.Generator().manual_seed(seed), []
    for size, fill in ((4, 64), (8, 64), (16, 64), (16, 40)):
        at = torch.arange(length)
        rows.append((torch.where(at < fill, at // size + 1, 0), torch.where(at < fill, at % size, 0)))
    segments, positions = (torch.stack(each) for each in zip(*rows, strict=True))
    tokens, targets = (torch.randint(0, words.SIZE, segments.shape, generator=draw) for _ in range(2))
    return Batch(tokens, positions, segments, targets, {"next_token": (segments > 0).float()}, samples=torch.arange(4), sources=torch.zeros(4).long())


def test_rows_are_as_short_as_their_longest_piece():
    made = folded(pieces(), least=2)
    assert made.tokens.shape == (16, 16)
    assert torch.equal(made.tokens, pieces().tokens.view(16, 16))
    assert made.samples.tolist() == [n for n in range(4) for _ in range(4)]
    assert folded(pieces(), least=32).tokens.shape == (8, 32)
    assert folded(pieces().rows_of(0, 1), least=2).tokens.shape == (16, 4)


def test_a_mask_goes_where_every_row_is_one_document():
    assert folded(pieces().rows_of(2, 3), least=2).segments is None
    assert folded(pieces().rows_of(2, 4), least=2).segments is not None


def test_what_cannot_be_cut_stays():
    batch = pieces()
    batch.segments[0, 31:33] = 9
    assert folded(batch, least=2) is batch
    batch = pieces()
    batch.streams["patches"] = torch.zeros(4, 3, 5)
    assert folded(batch, least=2) is batch


@pytest.mark.parametrize("name", TEXT)
def test_gradients_stay(name):
    found = []
    for fold in (False, True):
        model = pictures.decoder(ahead=2 if name == "multi_token" else 0)
        objective = attach(model, "mine", registry.choose("objectives", {"name": name, **words.options(name)}))
        objective.read(words.Words())
        batch = objective.prepare(words.dressed(name, pieces()), 7)
        batch.task = "mine"
        if fold:
            short = folded(batch, least=16)
            assert short.tokens.shape == (16, 16)
            batch = short
        result = Engine(model, {"mine": (objective, 1.0)}, torch.float32).forward_backward([batch])
        found.append((result.loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, plain), (again, short) = found
    assert again == pytest.approx(loss, rel=1e-5)
    assert plain.keys() == short.keys()
    for key, value in plain.items():
        torch.testing.assert_close(short[key], value, rtol=1e-4, atol=2e-6, msg=key)


def test_a_feed_folds_what_the_packing_levels():
    loader = Loader(small_tokens(), length=128, mix=None, seed=5, pack={"name": "decomposition", "shortest": 4})
    assert loader.levelled
    assert not Loader(small_tokens(), length=128, mix=None).levelled
    plain, feed = Feed(loader), Feed(loader, fold=True)
    shapes = set()
    for start in range(0, loader.epoch, 4):
        whole, made = plain.batch(start, 4), feed.batch(start, 4)
        assert torch.equal(made.tokens.flatten(), whole.tokens.flatten())
        shapes.add(made.tokens.shape[1])
    assert shapes == {64}, "no document of this store is longer"
