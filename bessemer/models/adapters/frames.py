"""Moving pictures as patches in space and time."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bessemer.core.errors import RecipeError
from bessemer.core.ranges import Count
from bessemer.models.adapters._adapter import Adapter


class Frames(Adapter):
    """Tubelets of a clip: patches over several frames, each a vector (Arnab et al. 2021, "ViViT", section 3.2).

    Args:
        size: edge of a patch in pixels.
        span: frames of a tubelet.
        picture: edge of the square frames in pixels; a multiple of `size`.
        frames: of a clip; a multiple of `span`.
        channels: of a pixel.

    Raises:
        RecipeError: tubelets don't fill a clip.
    """

    stream: ClassVar[str] = "frames"
    modality: ClassVar[str] = "clip"

    def __init__(self, width: int, *, size: Count = 8, span: Count = 2, picture: Count = 32, frames: Count = 8, channels: Count = 3) -> None:
        if picture % size or frames % span:
            problem = f"tubelets of {span} x {size} x {size} don't fill clips of {frames} x {picture} x {picture}"
            raise RecipeError(problem, key="adapter.size", mend="choose divisors")
        super().__init__(width, span * size * size * channels, (frames // span, picture // size, picture // size))
        self.edge, self.span, self.picture, self.frames, self.channels = size, span, picture, frames, channels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, self.picture, self.picture, self.channels

    def cut(self, raw: Tensor) -> Tensor:
        """uint8 [..., frames, picture, picture, channels] -> float32 [..., tubelets, values], from -1 to 1."""
        times, side, _ = self.grid
        first = raw.shape[:-4]
        x = raw.reshape(*first, times, self.span, side, self.edge, side, self.edge, self.channels)
        base = len(first)
        x = x.permute(*range(base), base, base + 2, base + 4, base + 1, base + 3, base + 5, base + 6)
        return x.reshape(*first, self.pieces, self.size).float() / 127.5 - 1.0
