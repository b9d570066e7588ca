"""Continuous time series in pieces."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bessemer.core.errors import RecipeError
from bessemer.core.ranges import Count
from bessemer.models.adapters._adapter import Adapter


class Series(Adapter):
    """Stretches of a time series of several channels, each a vector, the whole scaled to its own mean and deviation (Nie et al. 2022, "PatchTST").

    Args:
        size: steps of a stretch.
        steps: of a series; a multiple of `size`.
        channels: values at each step.

    Raises:
        RecipeError: stretches don't fill a series.
    """

    stream: ClassVar[str] = "series"
    modality: ClassVar[str] = "series"

    def __init__(self, width: int, *, size: Count = 16, steps: Count = 256, channels: Count = 1) -> None:
        if steps % size:
            raise RecipeError(f"stretches of {size} steps don't fill series of {steps}", key="adapter.size", mend="choose a divisor")
        super().__init__(width, size * channels, (steps // size,))
        self.steps, self.channels = steps, channels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.steps, self.channels

    def cut(self, raw: Tensor) -> Tensor:
        """float32 [..., steps, channels] -> [..., stretches, size x channels], each channel of mean 0 and deviation 1."""
        centred = raw.float() - raw.float().mean(-2, keepdim=True)
        scaled = centred / (centred.square().mean(-2, keepdim=True).sqrt() + 1e-5)
        return scaled.reshape(*raw.shape[:-2], self.pieces, self.size)
