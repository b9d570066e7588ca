"""Views of pictures: random crops, turned and recoloured, each a function of a key and the example's draw."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bessemer.objectives._examples import uniforms


def views(pictures: Tensor, draw: Tensor, seed: int, count: int, *, least: float, colour: float, flip: bool) -> Tensor:
    """`count` views of each picture (Chen et al. 2020, "SimCLR", section 3: crop and colour).

    Args:
        pictures: uint8 [rows, per_row, edge, edge, channels].
        draw: int64 [rows, per_row].
        least: the least area of a crop, as a share of the picture's.
        colour: how far brightness and each channel may change, as a factor from 1 - colour to 1 + colour.
        flip: whether half of them are mirrored.

    Returns:
        float32 [rows, per_row, count, edge, edge, channels], from 0 to 255.
    """
    rows, per_row, edge, _, channels = pictures.shape
    drawn = uniforms(seed, "views", draw, count * (5 + channels)).view(rows * per_row * count, 5 + channels)
    area = least + (1.0 - least) * drawn[:, 0]
    ratio = torch.exp((drawn[:, 1] * 2 - 1) * math.log(4 / 3))
    wide, high = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    across, down = (drawn[:, 2] * 2 - 1) * (1 - wide), (drawn[:, 3] * 2 - 1) * (1 - high)
    sign = torch.where(drawn[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(wide)
    zero = torch.zeros_like(wide)
    frame = torch.stack([torch.stack([wide * sign, zero, across], -1), torch.stack([zero, high, down], -1)], 1)
    source = pictures.float().permute(0, 1, 4, 2, 3).reshape(rows * per_row, channels, edge, edge).repeat_interleave(count, 0)
    cut = F.grid_sample(source, F.affine_grid(frame, list(source.shape), align_corners=False), padding_mode="reflection", align_corners=False)
    factor = 1.0 + colour * (2 * drawn[:, 5:] - 1)
    return (cut * factor[..., None, None]).clamp(0, 255).permute(0, 2, 3, 1).reshape(rows, per_row, count, edge, edge, channels)
