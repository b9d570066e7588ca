"""Pictures as patches."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from bessemer.core.errors import RecipeError
from bessemer.core.ranges import Count
from bessemer.models.adapters._adapter import Adapter


class Patches(Adapter):
    """Square patches of a picture, each a vector, with learned places (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words").

    Args:
        size: edge of a patch in pixels.
        picture: edge of the square pictures in pixels; a multiple of `size`.
        channels: of a pixel.

    Raises:
        RecipeError: patches don't fill a picture.
    """

    stream: ClassVar[str] = "patches"
    modality: ClassVar[str] = "picture"

    def __init__(self, width: int, *, size: Count = 8, picture: Count = 32, channels: Count = 3) -> None:
        if picture % size:
            raise RecipeError(f"patches of {size} pixels don't fill pictures of {picture}", key="adapter.size", mend="choose a divisor")
        super().__init__(width, size * size * channels, (picture // size, picture // size))
        self.edge, self.picture, self.channels = size, picture, channels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.picture, self.picture, self.channels

    def cut(self, raw: Tensor) -> Tensor:
        """uint8 [..., picture, picture, channels] -> float32 [..., patches, size x size x channels], from -1 to 1."""
        side, edge = self.grid[0], self.edge
        x = raw.reshape(*raw.shape[:-3], side, edge, side, edge, self.channels).movedim(-3, -4)
        return x.reshape(*raw.shape[:-3], side * side, self.size).float() / 127.5 - 1.0

    def join(self, pieces: Tensor) -> Tensor:
        """The reverse of `cut`: float32 [..., picture, picture, channels], from -1 to 1."""
        side, edge = self.grid[0], self.edge
        x = pieces.reshape(*pieces.shape[:-2], side, side, edge, edge, self.channels).movedim(-3, -4)
        return x.reshape(*pieces.shape[:-2], self.picture, self.picture, self.channels)
