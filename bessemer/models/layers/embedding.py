"""Tables of vectors: for tokens, and for learned absolute positions (GPT-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Module):
    """A vector [width] for each of `count` indices; its first logical axis is `axis`."""

    def __init__(self, count: int, width: int, axis: str = "vocabulary") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        self.axes, self.roles = {"weight": (axis, "embed")}, {"weight": "embedding"}

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)
