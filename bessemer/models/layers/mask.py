"""Who may look at whom: masks built once per micro-batch and shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(segments: Tensor, window: int | None, open: Tensor | None = None) -> Tensor:
    """Causal attention inside equal segments, at most `window` tokens back (itself counted), and to their open columns.

    Args:
        segments: int64 [rows, length].
        window: or None for the whole document.
        open: bool [rows, length], columns that all of their segment may look at, however far; None: none are.

    Returns:
        bool [rows, 1, length, length]. Padding looks at padding, so no row of it is empty.
    """
    length = segments.shape[1]
    place = torch.arange(length, device=segments.device)
    back = place[:, None] - place[None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    allowed = near if open is None else near | open[:, None, :]
    return ((segments[:, :, None] == segments[:, None, :]) & allowed)[:, None]


def windowed(length: int, window: int, device: torch.device) -> Tensor:
    """Causal attention at most `window` tokens back, itself counted: bool [1, 1, length, length]."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]


def cached(positions: Tensor, start: int | Tensor, columns: int, window: int | None) -> Tensor:
    """Which cached columns each new token may look at.

    A document's tokens lie in neighbouring columns, so the token at column c with position p sees columns c - p to c and no
    others: left padding, other documents and columns not yet written are out by that alone.

    Args:
        positions: int64 [rows, new].
        start: the first new column, for all rows or int64 [rows].
        columns: how many columns the cache will return.

    Returns:
        bool [rows, 1, new, columns].
    """
    new = torch.arange(positions.shape[1], device=positions.device)
    here = (start[:, None] if isinstance(start, Tensor) else start) + new.expand_as(positions)
    first = here - positions
    if window is not None:
        first = torch.maximum(first, here - window + 1)
    place = torch.arange(columns, device=positions.device)
    return ((place >= first[..., None]) & (place <= here[..., None]))[:, None]
