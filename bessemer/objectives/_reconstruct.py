"""A small decoder that fills in what the trunk didn't see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bessemer.models.adapters._adapter import Blank
from bessemer.models.layers.attention import Attention, Context
from bessemer.models.layers.block import Block
from bessemer.models.layers.embedding import Embedding
from bessemer.models.layers.linear import Linear
from bessemer.models.layers.mlp import mlp
from bessemer.models.layers.norm import norm

HEAD_SIZE = 32


class Decoder(nn.Module):
    """States of the pieces that were seen -> values of all pieces (He et al. 2021, "Masked Autoencoders", section 3).

    Args:
        width: of the states.
        inner: the decoder's own width, a multiple of 32.
        depth: its layers.
        pieces: how many pieces an input has.
        size: values of a piece.
    """

    def __init__(self, width: int, inner: int, depth: int, pieces: int, size: int) -> None:
        super().__init__()
        heads = inner // HEAD_SIZE
        self.enter = Linear(width, inner, axes=("none", "embed"))
        self.place = Embedding(pieces, inner, "position")
        self.blank = Blank(inner)
        self.blocks = nn.ModuleList(
            Block(
                Attention(inner, heads, heads, HEAD_SIZE, n),
                mlp("gelu", inner, 4 * inner, False),
                norm("rms", inner, 1e-6),
                norm("rms", inner, 1e-6),
                "pre",
                False,
            )
            for n in range(depth)
        )
        self.norm = norm("rms", inner, 1e-6)
        self.head = Linear(inner, size, axes=("none", "embed"), bias=True, role="head")

    def forward(self, states: Tensor, where: Tensor) -> Tensor:
        """The values of all pieces.

        Args:
            states: [inputs, seen, width].
            where: int64 [inputs, seen], the place of each piece that was seen.

        Returns:
            float32 [inputs, pieces, size].
        """
        entered = self.enter(states)
        blank = self.blank().to(entered.dtype).expand(len(states), self.place.weight.shape[0], -1)
        x = blank.scatter(1, where[..., None].expand(-1, -1, entered.shape[-1]), entered) + self.place.weight.to(entered.dtype)
        everything = Context(None, None, None, causal=False)
        for block in self.blocks:
            x = block(x, everything)
        return self.head(self.norm(x)).float()


def normalised(values: Tensor) -> Tensor:
    """Each piece's values with mean 0 and deviation 1: what the paper found the better target."""
    centred = values - values.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
