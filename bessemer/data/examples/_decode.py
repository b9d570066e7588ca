"""Pictures from encoded bytes."""

from __future__ import annotations

import io
import warnings

import numpy as np

from bessemer.data.example import Array

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 1 << 26


class Undecodable(Exception):
    """These bytes are no picture; its text says why."""


def decode(content: bytes) -> Array:
    """uint8 [height, width, 3] of an encoded picture; transparent parts lie on white.

    Raises:
        Undecodable: the bytes are no picture, are cut off, or hold more than 64 million pixels.
    """
    from PIL import Image, UnidentifiedImageError  # matplotlib brings it; only those who read pictures wait for it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise Undecodable(f"is too large: {opened.width} x {opened.height} pixels")
                if opened.mode not in ("RGBA", "LA", "P", "PA"):
                    return np.array(opened.convert("RGB"), dtype=np.uint8)
                clear = opened.convert("RGBA")
                return np.array(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"), dtype=np.uint8)
    except Undecodable:
        raise
    except UnidentifiedImageError:  # its text names a place in memory, another each time
        raise Undecodable("is no readable picture: its bytes are of no known format") from None
    except Exception as error:  # its decoders raise whatever they stumble over
        raise Undecodable(f"is no readable picture: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def fit(picture: Array, edge: int) -> Array:
    """The middle square of a picture [height, width, 3], scaled to edge x edge."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == edge:
        return square
    from PIL import Image

    return np.array(Image.fromarray(square).resize((edge, edge), Image.Resampling.LANCZOS), dtype=np.uint8)
