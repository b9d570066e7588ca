"""The keys and values of the tokens read so far, so that each new token costs one column of attention."""

from __future__ import annotations

from torch import Tensor


class Cache:
    """Preallocated keys and values of every layer, for rows that all stand at the same column.

    Ragged prompts are padded on the left; masks follow from positions, so padding needs no mask of its own. Memory is
    taken at the first `update`, in the type and on the device of the keys. When every layer looks at most `window`
    tokens back, only that many columns are kept: older ones are dropped when the space is full.

    Args:
        capacity: columns wanted at most.
        window: the longest look back of any layer in tokens, itself counted; None if some layer sees everything.
    """

    def __init__(self, capacity: int, window: int | None = None) -> None:
        self.capacity, self.window = capacity, window
        self.length = 0
        self._new = 0
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def make_room(self, new: int) -> None:
        """Before a forward pass over `new` columns: drops columns out of every window if the space is full, or takes more."""
        if self.length + new <= self._space():
            return
        if self.window is not None and self.length >= self.window:
            kept = self.window - 1
            self._held = {layer: (_moved(k, self.length, kept), _moved(v, self.length, kept)) for layer, (k, v) in self._held.items()}
            self.length = kept
        wanted = self.length + new
        if wanted > self._space():
            self._held = {layer: (_grown(k, self.length, wanted), _grown(v, self.length, wanted)) for layer, (k, v) in self._held.items()}

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values [rows, kv_heads, new, head] and returns those of all columns so far."""
        self._new = key.shape[2]
        end = self.length + self._new
        if layer not in self._held:
            self._held[layer] = (_empty(key, max(self._columns(), end)), _empty(value, max(self._columns(), end)))
        keys, values = self._held[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self) -> None:
        """After a forward pass: its columns count as read."""
        self.length += self._new
        self._new = 0

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows (int64 [kept]), in this order."""
        self._held = {layer: (k.index_select(0, rows), v.index_select(0, rows)) for layer, (k, v) in self._held.items()}

    def bytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for pair in self._held.values() for tensor in pair)

    def _columns(self) -> int:
        """Columns to allocate: twice the window, so that dropping old columns is paid once for many tokens."""
        return self.capacity if self.window is None else min(self.capacity, 2 * self.window)

    def _space(self) -> int:
        return next(iter(self._held.values()))[0].shape[2] if self._held else self._columns()


def _empty(like: Tensor, columns: int) -> Tensor:
    return like.new_zeros(like.shape[0], like.shape[1], columns, like.shape[3])


def _moved(held: Tensor, length: int, kept: int) -> Tensor:
    """The last `kept` of `length` columns at the beginning; the copy keeps overlapping ranges apart."""
    held[:, :, :kept] = held[:, :, length - kept : length].clone()
    return held


def _grown(held: Tensor, length: int, wanted: int) -> Tensor:
    larger = _empty(held, max(wanted, 2 * length))
    larger[:, :, :length] = held[:, :, :length]
    return larger
