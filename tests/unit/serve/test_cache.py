"""The cache: what it returns is what was stored, whatever was dropped, grown or chosen."""

import torch

from bessemer.serve.cache import Cache


def feed(cache, keys, layers=2):
    """Stores the columns of `keys` [rows, heads, new, head] in every layer and returns layer 1's."""
    cache.make_room(keys.shape[2])
    for layer in range(layers):
        found = cache.update(layer, keys + layer, -keys - layer)
    cache.advance()
    return found


def columns(start, stop, rows=2):
    return torch.arange(start, stop, dtype=torch.float32).expand(rows, 3, stop - start)[..., None].expand(rows, 3, stop - start, 4).clone()


def test_returns_all_columns_in_order():
    cache = Cache(16)
    feed(cache, columns(0, 5))
    key, value = feed(cache, columns(5, 6))
    assert torch.equal(key, columns(0, 6) + 1)
    assert torch.equal(value, -columns(0, 6) - 1)
    assert cache.length == 6


def test_grows_past_its_capacity_without_losing_anything():
    cache = Cache(2)
    for column in range(9):
        key, _ = feed(cache, columns(column, column + 1))
    assert torch.equal(key, columns(0, 9) + 1)


def test_windowed_cache_keeps_the_window_and_bounded_memory():
    cache = Cache(1000, window=4)
    for column in range(100):
        key, _ = feed(cache, columns(column, column + 1))
        wanted = columns(max(0, column - 3), column + 1) + 1
        assert torch.equal(key[:, :, -wanted.shape[2] :], wanted)
    assert key.shape[2] <= 8
    assert cache.bytes() <= 2 * 2 * (2 * 3 * 8 * 4 * 4)


def test_windowed_cache_takes_a_prompt_longer_than_its_space():
    cache = Cache(1000, window=4)
    feed(cache, columns(0, 20))
    for column in range(20, 50):
        key, _ = feed(cache, columns(column, column + 1))
        assert torch.equal(key[:, :, -4:], columns(column - 3, column + 1) + 1)


def test_keeps_chosen_rows_in_their_order():
    cache = Cache(8)
    keys = columns(0, 3, rows=3) + 10 * torch.arange(3.0)[:, None, None, None]
    feed(cache, keys)
    cache.keep(torch.tensor([2, 0]))
    key, _ = feed(cache, columns(3, 4))
    assert torch.equal(key[:, :, :3], keys[[2, 0]] + 1)
