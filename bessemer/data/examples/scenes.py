"""Scenes of shapes with captions, and everything about them known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bessemer.core import rng
from bessemer.core.errors import RecipeError
from bessemer.data.example import Array, Example, Unreadable

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40), "green": (42, 157, 60), "blue": (40, 80, 214), "yellow": (240, 210, 40), "purple": (140, 50, 170), "white": (240, 240, 240),
}  # fmt: skip
SIZES = {"small": 0.085, "large": 0.15}
NUMBERS = ("one", "two", "three")
PLACES = {"on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27), "at the bottom": (0.5, 0.73)}
_AROUND = {1: ((0.0, 0.0),), 2: ((-0.5, 0.0), (0.5, 0.0)), 3: ((-0.55, 0.4), (0.55, 0.4), (0.0, -0.55))}


@dataclass(frozen=True)
class Group:
    """Some equal shapes that stand together."""

    shape: str
    colour: str
    size: str
    number: str
    place: str

    def words(self) -> str:
        return f"{self.number} {self.size} {self.colour} {self.shape}{'' if self.number == 'one' else 'es' if self.shape == 'cross' else 's'} {self.place}"


def scenes(*, count: int, picture: int = 32, groups: int = 1, noise: float = 12.0, seed: int = 0) -> Iterator[Example | Unreadable]:
    """Pictures of coloured shapes with captions such as "two small red circles on the left", each a function of (seed, its number).

    Their labels say the shape, colour, size, number and place of the first group: exact ground truth for probing, zero-shot
    classification and retrieval. Brightness of the ground, exact places and sizes vary.

    Args:
        count: how many.
        picture: edge in pixels.
        groups: the most groups of shapes in one scene, 1 or 2; drawn evenly.
        noise: standard deviation of the noise on every pixel, of 255.
        seed: another seed gives other scenes.

    Raises:
        RecipeError: a number is out of range.
    """
    if count < 1 or picture < 8 or groups not in (1, 2):
        raise RecipeError(
            f"count = {count}, picture = {picture}, groups = {groups} can't be", key="scenes", mend="count from 1, picture from 8, groups 1 or 2"
        )
    for number in range(count):
        draw = rng.numpy_generator(seed, "scenes", number)
        found = _groups(draw, int(draw.integers(1, groups + 1)))
        labels = {name: getattr(found[0], name) for name in ("shape", "colour", "size", "number", "place")}
        caption = " and ".join(group.words() for group in found)
        yield Example({"picture": render(found, picture, noise, draw)}, caption, labels, "scenes", str(number))


def render(groups: list[Group], edge: int, noise: float, draw: np.random.Generator) -> Array:
    """The picture of some groups: uint8 [edge, edge, 3], its edges smoothed over a pixel."""
    ground = draw.uniform(20.0, 120.0) + draw.normal(0.0, 6.0, 3)
    canvas = np.broadcast_to(ground, (edge, edge, 3)).copy()
    grid = (np.arange(edge) + 0.5) / edge
    across, down = grid[None, :], grid[:, None]
    for group in groups:
        radius = SIZES[group.size] * draw.uniform(0.88, 1.12)
        middle = np.array(PLACES[group.place]) + draw.uniform(-0.07, 0.07, 2)
        colour = np.array(COLOURS[group.colour]) + draw.normal(0.0, 8.0, 3)
        spread = 2.1 * radius + 0.02
        for offset in _AROUND[NUMBERS.index(group.number) + 1]:
            at = middle + np.array(offset) * spread
            cover = np.clip(0.5 - _distance(group.shape, across - at[0], down - at[1], radius) * edge, 0.0, 1.0)[..., None]
            canvas = canvas * (1.0 - cover) + colour * cover
    return np.clip(canvas + draw.normal(0.0, noise, canvas.shape), 0, 255).astype(np.uint8)


def _groups(draw: np.random.Generator, count: int) -> list[Group]:
    places = draw.permutation(4)[:2] if count == 2 else [int(draw.integers(4))]
    if count == 2:  # facing each other, so that they don't overlap
        first = int(draw.integers(4))
        places = [first, first ^ 1]
    found = []
    for place in places:
        shape, colour, size, number = (int(draw.integers(n)) for n in (len(SHAPES), len(COLOURS), len(SIZES), len(NUMBERS)))
        found.append(Group(SHAPES[shape], list(COLOURS)[colour], list(SIZES)[size], NUMBERS[number], list(PLACES)[place]))
    return found


def _distance(shape: str, x: Array, y: Array, radius: float) -> Array:
    """About how far each point lies outside the shape; negative inside."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.6 * radius
    arm, long = 0.36 * radius, 1.05 * radius
    upright, level = np.maximum(np.abs(x) - arm, np.abs(y) - long), np.maximum(np.abs(y) - arm, np.abs(x) - long)
    return np.minimum(upright, level)
