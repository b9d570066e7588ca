"""The feed-forward part of a block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from bessemer.models.layers.linear import Linear

MLPName = Literal["swiglu", "gelu", "gelu_tanh"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, ffn: int, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * ffn, axes=("ffn", "embed"), bias=bias, parts=(ffn, ffn))
        self.down = Linear(ffn, width, axes=("embed", "ffn"), bias=bias, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GELU(nn.Module):
    """down(gelu(up(x))), exact or in GPT-2's tanh approximation (Hendrycks and Gimpel 2016)."""

    def __init__(self, width: int, ffn: int, bias: bool, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.up = Linear(width, ffn, axes=("ffn", "embed"), bias=bias)
        self.down = Linear(ffn, width, axes=("embed", "ffn"), bias=bias, residual=True)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


def mlp(name: MLPName, width: int, ffn: int, bias: bool) -> nn.Module:
    """The feed-forward network called `name`."""
    if name == "swiglu":
        return SwiGLU(width, ffn, bias)
    return GELU(width, ffn, bias, "tanh" if name == "gelu_tanh" else "none")
