"""Normalisation over the last axis, computed in float32 whatever the activations are held in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormName = Literal["rms", "layer"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization")."""

    def __init__(self, width: int, eps: float, axis: str = "embed") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.axes, self.roles = {"weight": (axis,)}, {"weight": "vector"}

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias (Ba et al. 2016, "Layer Normalization")."""

    def __init__(self, width: int, eps: float, axis: str = "embed") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.axes = {"weight": (axis,), "bias": (axis,)}
        self.roles = {"weight": "vector", "bias": "vector"}

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def norm(name: NormName, width: int, eps: float, axis: str = "embed") -> nn.Module:
    """The normalisation called `name` over `width` elements whose logical axis is `axis`."""
    return RMSNorm(width, eps, axis) if name == "rms" else LayerNorm(width, eps, axis)
