"""Rotary position embedding and the ways its frequencies are stretched over longer contexts (Su et al. 2021, "RoFormer")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SCALINGS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "original_max_position_embeddings", "attention_factor"}),
}
"""The scalings by Hugging Face's names, with the keys each needs and those it may have."""


class Rope:
    """Cosines and sines for positions; holds no tensors, so a model may be built on the meta device and moved freely.

    Args:
        size: elements of a head, even.
        theta: base of the geometric frequencies.
        length: positions the model was made for.
        scaling: None, or a table with "rope_type" and that scaling's keys as Hugging Face names them.
    """

    def __init__(self, size: int, theta: float, length: int, scaling: dict[str, Any] | None = None) -> None:
        self.size, self.theta, self.length = size, float(theta), length
        self.scaling = scaling or {"rope_type": "default"}
        self.kind = self.scaling["rope_type"]
        self.original = int(self.scaling.get("original_max_position_embeddings") or length)
        self._known: dict[tuple[torch.device, bool], Tensor] = {}

    def __call__(self, positions: Tensor, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [rows, length, 1, size / 2], for positions [rows, length].

        Args:
            longest: the highest position of the batch plus one, where `positions` are only some of it.
        """
        frequencies = self.frequencies(positions, longest)
        angles = positions[..., None].to(torch.float32) * frequencies
        factor = self.attention_factor()
        return (angles.cos() * factor).unsqueeze(2), (angles.sin() * factor).unsqueeze(2)

    def frequencies(self, positions: Tensor, longest: int | None = None) -> Tensor:
        """float32 [size / 2]; for the dynamic and longrope scalings they depend on the longest position seen."""
        if self.kind == "dynamic":
            longest = max(longest or int(positions.max()) + 1, self.length)
            growth = self.scaling["factor"] * longest / self.length - (self.scaling["factor"] - 1)
            return self._plain(self.theta * growth ** (self.size / (self.size - 2)), positions.device)
        beyond = self.kind == "longrope" and (longest or int(positions.max()) + 1) > self.original
        key = (positions.device, beyond)
        if key not in self._known:
            self._known[key] = self._scaled(self._plain(self.theta, positions.device), beyond)
        return self._known[key]

    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by, so that attention's temperature suits the stretched context."""
        given = self.scaling.get("attention_factor")
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if given is not None:
            return float(given)
        factor = self._factor()
        if self.kind == "longrope":
            return math.sqrt(1 + math.log(factor) / math.log(self.original)) if factor > 1 else 1.0
        above, below = self.scaling.get("mscale"), self.scaling.get("mscale_all_dim")
        if above and below:
            return _yarn_scale(factor, above) / _yarn_scale(factor, below)
        return _yarn_scale(factor, 1.0)

    def _factor(self) -> float:
        """How many times longer than at first; longrope and yarn may leave it to the two lengths."""
        return float(self.scaling.get("factor") or self.length / self.original)

    def _plain(self, theta: float, device: torch.device) -> Tensor:
        return 1.0 / theta ** (torch.arange(0, self.size, 2, device=device, dtype=torch.float32) / self.size)

    def _scaled(self, plain: Tensor, beyond: bool) -> Tensor:
        if self.kind == "linear":
            return plain / self.scaling["factor"]
        if self.kind == "yarn":
            return self._yarn(plain)
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "longrope":
            return plain / torch.tensor(self.scaling["long_factor" if beyond else "short_factor"], device=plain.device, dtype=torch.float32)
        return plain

    def _yarn(self, plain: Tensor) -> Tensor:
        """Fast dimensions keep their frequency, slow ones are interpolated, a ramp between (Peng et al. 2023, "YaRN")."""

        def dimension(turns: float) -> float:  # where a dimension makes this many turns over the first context
            return self.size * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(self.scaling.get("beta_fast") or 32), dimension(self.scaling.get("beta_slow") or 1)
        if self.scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.size - 1)
        high = high + 0.001 if low == high else high
        ramp = ((torch.arange(self.size // 2, device=plain.device, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        return plain / self._factor() * ramp + plain * (1 - ramp)

    def _llama3(self, plain: Tensor) -> Tensor:
        """Long wavelengths are divided by the factor, short ones kept, a linear blend between (Llama 3.1)."""
        slow, fast, factor = (self.scaling[name] for name in ("low_freq_factor", "high_freq_factor", "factor"))
        wavelengths = 2 * math.pi / plain
        blend = (self.original / wavelengths - slow) / (fast - slow)
        between = (1 - blend) * plain / factor + blend * plain
        stretched = torch.where(wavelengths > self.original / slow, plain / factor, between)
        return torch.where(wavelengths < self.original / fast, plain, stretched)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + size / 2) of x [rows, length, heads, size] by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def scaling_problem(scaling: dict[str, Any], size: int) -> tuple[str, str] | None:
    """The key and what is wrong with it in a table of RoPE scaling, or None."""
    kind = scaling.get("rope_type")
    if kind not in SCALINGS:
        return "rope_type", f"{kind!r} is no known scaling; there is {', '.join(SCALINGS)}"
    needed, optional = SCALINGS[kind]
    for key in sorted(needed - scaling.keys()):
        return key, f"the {kind} scaling needs it"
    for key, value in scaling.items():
        if key not in needed | optional | {"rope_type"}:
            return key, f"the {kind} scaling has no such key"
        if key in ("short_factor", "long_factor"):
            if not isinstance(value, list) or len(value) != size // 2 or not all(_positive(each) for each in value):
                return key, f"a list of {size // 2} positive numbers is wanted for heads of {size}, and {value!r} is given"
        elif key not in ("rope_type", "truncate", "mscale", "mscale_all_dim") and not _positive(value):
            return key, f"a positive number is wanted, and {value!r} is given"
    return None


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
