"""What follows from a model's size when a recipe says `auto`: length, batch, horizon, micro-batch."""

from __future__ import annotations

import math

from bessemer.core import device
from bessemer.core.mesh import ROWS, TOKENS, Mesh

TOKENS_PER_PARAMETER = 20.0
"""Training tokens for each parameter in a matrix product (Hoffmann et al. 2022)."""


def length(depth: int) -> int:
    """Tokens of a row: 64 for each layer, between 256 and 2,048."""
    return min(2048, max(256, 64 * depth))


def horizon(parameters: int) -> int:
    """Tokens to train on."""
    return int(TOKENS_PER_PARAMETER * parameters)


def batch_tokens(horizon: int) -> int:
    """Tokens of a global batch: 8,192 at a horizon of 100M tokens, growing with its 0.4th power.

    The best batch depends on the data seen rather than on the model (Bergsma et al. 2025, "Power Lines", who fit an
    exponent of 0.38 to 0.46).
    """
    wanted = 8192 * (max(horizon, 1) / 100e6) ** 0.4
    return max(2048, 1 << round(math.log2(wanted)))


def micro_rows(rows: int, length: int, mesh: Mesh) -> int:
    """The most rows that divide the global batch and keep a rank's part of a micro-batch small: all ranks' together.

    That is about 2,048 tokens on a processor, which stay near its caches, and 32,768 on an accelerator. Stages of a pipeline get two micro-batches each
    where there are as many rows, and ranks that share rows as many of them each where that divides the batch.
    """
    most, sharing = (32768 if device.is_accelerator() else 2048) * mesh.count(*TOKENS) // length, mesh.count(*ROWS)
    if mesh.pipe > 1:
        most = min(most, rows // (2 * mesh.pipe))
    sizes = [size for size in range(min(max(most, sharing), rows), 0, -1) if rows % size == 0]
    return next((size for size in sizes if size % sharing == 0), sizes[0])
