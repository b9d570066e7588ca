"""Predicting the token after the next: one light module for each further token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bessemer.models.layers.attention import Context
from bessemer.models.layers.linear import Linear


class Ahead(nn.Module):
    """One module of sequential multi-token prediction (DeepSeek-AI 2024, "DeepSeek-V3", section 2.2).

    Joins the previous module's state with the embedding of the token it predicted, so each further prediction knows the
    tokens between; chosen over Gloeckle et al.'s parallel heads because small models gain from it too. Embedding and head
    are the model's own. At run time it is left out, or drafts for speculative decoding.
    """

    def __init__(self, width: int, block: nn.Module, state_norm: nn.Module, token_norm: nn.Module, final_norm: nn.Module) -> None:
        super().__init__()
        self.state_norm, self.token_norm = state_norm, token_norm
        self.join = Linear(2 * width, width, axes=("embed", "embed"))
        self.block, self.norm = block, final_norm

    def forward(self, x: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """x, embedded: [rows, length, width]: the state so far and the next token's embedding. Returns state and hidden."""
        x = self.block(self.join(torch.cat((self.state_norm(x), self.token_norm(embedded)), dim=-1)), context)
        return x, self.norm(x)
