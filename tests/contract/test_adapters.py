"""Every adapter: the same pieces for an input alone and among others, no value left out, and nothing done to a batch without its streams."""

import pytest
import torch

from bessemer.core import registry
from bessemer.core.batch import Batch

NAMES = registry.names("models/adapters")
WIDTH = 16


def made(name):
    return registry.choose("models/adapters", name)(WIDTH)


def raw(adapter, count=3):
    draw = torch.Generator().manual_seed(0)
    if adapter.modality in ("picture", "clip"):
        return torch.randint(0, 256, (count, *adapter.shape), generator=draw, dtype=torch.uint8)
    return torch.randn(count, *adapter.shape, generator=draw)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_cut_alike_alone_and_among_others(name):
    adapter = made(name)
    values = raw(adapter)
    together = adapter.cut(values)
    assert together.shape == (3, adapter.pieces, adapter.size)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    for one, among in zip(values, together, strict=True):
        torch.testing.assert_close(adapter.cut(one), among)
    torch.testing.assert_close(adapter.cut(values[None])[0], together)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_its_place(name):
    adapter = made(name)
    (value,) = raw(adapter, 1)
    before = adapter.cut(value)
    flat = value.flatten()
    for at in torch.linspace(0, len(flat) - 1, 23).long().tolist():
        changed = flat.clone()
        changed[at] = 255 - changed[at] if value.dtype == torch.uint8 else changed[at] + 5.0
        moved = adapter.cut(changed.view_as(value)) != before
        assert moved.any(), f"value {at} of {len(flat)} reaches no piece"
        if value.dtype == torch.uint8:
            assert int(moved.sum()) == 1, "a pixel's value stands in one place"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_its_streams_passes_unchanged(name):
    adapter = made(name)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(adapter(x, Batch(tokens, tokens, tokens)), x)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_stand_in_their_columns_and_nowhere_else(name):
    adapter = made(name)
    torch.nn.init.normal_(adapter.project.weight)
    for table in adapter.places:
        torch.nn.init.zeros_(table.weight)
    pieces = adapter.cut(raw(adapter, 2))[:, :3]
    index = torch.tensor([[-1, 0, 2, -1, 1], [2, -1, -1, -1, 0]])
    place = torch.arange(3).expand(2, 3) % adapter.pieces
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    x = torch.randn(2, 5, WIDTH)
    streams = {adapter.stream: pieces, f"{adapter.stream}_index": index, f"{adapter.stream}_place": place}
    found = adapter(x, Batch(tokens, tokens, tokens, streams=streams))
    assert torch.equal(found[index < 0], x[index < 0])
    torch.testing.assert_close(found[0, 2], adapter.project(pieces)[0, 2])
