"""A frozen matrix plus the product of two thin ones: what LoRA and those after it share."""

from __future__ import annotations

from torch import Tensor

from bessemer.core.products import linear
from bessemer.models.reparameterized import Matrix, Place


class LowRank(Matrix):
    """base + scale x left right: base [outputs, inputs] frozen, left [outputs, rank] and right [rank, inputs] train."""

    base: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, place: Place, rank: int, scale: float) -> None:
        super().__init__(weight, place)
        self.rank, self.scale = rank, scale
        outputs, inputs = place.axes
        self.hold("base", weight, trains=False)
        self.hold("left", weight.new_zeros(self.outputs, rank), axes=(outputs, "rank"))
        self.hold("right", self.first_right(weight), axes=("rank", inputs))

    def first_right(self, weight: Tensor) -> Tensor:
        """The right factor's values at the start: normal, with the spread 1 / sqrt(3 inputs) of the published code's uniform ones."""
        return self.place.normal((self.rank, self.inputs), (3 * self.inputs) ** -0.5, weight, "right")

    def composed(self) -> Tensor:
        return self.base + self.scale * (self.left @ self.right)

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.base) + self.scale * linear(linear(x, self.right), self.left)

    def flops(self) -> float:
        """A frozen matrix needs no gradient of its own."""
        return 4.0 * self.outputs * self.inputs + 6.0 * self.rank * (self.outputs + self.inputs)
