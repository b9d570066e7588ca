"""Sound as log-mel frames."""

from __future__ import annotations

import math
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from bessemer.core.errors import RecipeError
from bessemer.core.ranges import Count
from bessemer.models.adapters._adapter import Adapter

FLOOR = 1e-10


class LogMel(Adapter):
    """Short-time spectra on the mel scale, in decibels, several frames to a vector (Radford et al. 2022, "Whisper", section 2.2).

    Args:
        rate: samples a second.
        samples: of a sound; a multiple of `hop` x `size`.
        bands: mel bands.
        window: samples of a spectrum.
        hop: samples from one spectrum to the next.
        size: frames joined into one vector.

    Raises:
        RecipeError: frames don't fill a sound.
    """

    stream: ClassVar[str] = "sound"
    modality: ClassVar[str] = "sound"

    def __init__(
        self, width: int, *, rate: Count = 16000, samples: Count = 16000, bands: Count = 40, window: Count = 400, hop: Count = 160, size: Count = 4
    ) -> None:
        if samples % (hop * size):
            problem = f"vectors of {size} frames, {hop} samples apart, don't fill sounds of {samples} samples"
            raise RecipeError(problem, key="adapter.samples", mend=f"choose a multiple of {hop * size}")
        super().__init__(width, bands * size, (samples // (hop * size),))
        self.rate, self.samples, self.bands, self.window, self.hop = rate, samples, bands, window, hop

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.samples,)

    def cut(self, raw: Tensor) -> Tensor:
        """float32 [..., samples] -> [..., vectors, bands x size]; the loudest band at 1, what is 80 dB below it at -1."""
        flat = raw.float().reshape(-1, self.samples)
        spectra = torch.stft(flat, self.window, self.hop, window=torch.hann_window(self.window), center=True, return_complex=True)
        power = spectra[..., : self.samples // self.hop].abs().square()
        mel = torch.einsum("bf,nft->ntb", filters(self.rate, self.window, self.bands), power)
        level = mel.clamp(min=FLOOR).log10()
        level = torch.maximum(level, level.amax((1, 2), keepdim=True) - 8.0)
        scaled = (level - level.amax((1, 2), keepdim=True)) / 4.0 + 1.0
        return scaled.reshape(*raw.shape[:-1], self.pieces, self.size)


@cache
def filters(rate: int, window: int, bands: int) -> Tensor:
    """Triangles evenly spaced on the mel scale (O'Shaughnessy 1987), each of area one: float32 [bands, window // 2 + 1]."""

    def to_mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    edges = torch.linspace(0.0, to_mel(rate / 2), bands + 2, dtype=torch.float64)
    hertz = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    bins = torch.linspace(0.0, rate / 2, window // 2 + 1, dtype=torch.float64)
    low, middle, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0.0)
    return (triangles * 2.0 / (high - low)).float()
