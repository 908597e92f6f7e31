"""JPEG decoded at a half, a quarter or an eighth of its size, where the model's input is small.

A JPEG holds blocks of 8 x 8 frequencies. Made of the low ones only, a picture is smaller at once:
most of the transforms and of the pixels that a resize would read are never made. What it costs in
exactness is measured by `tests/benchmarks/decode_parity.py`. At other scales than these libjpeg has
no vector code, and takes longer than for the whole picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from transforms.fitting import can_be_whole, scaled_size
from transforms.records import Preprocess

MARGIN = 2.8
"""How much larger than the model's input a picture is decoded, at least, and resized from there.

By what the demo model makes of its held-out drawings: of their tags 0.5 % differ at 2.8, 0.7 % at
2.5, 1 to 3 % at 1 to 1.5. Vectors drift by a tenth of the bound on them even at 1.9.
"""


class Reduced(NamedTuple):
    """`uint8[h, w, 3]` pixels; `size` is the width and height of the picture in units of them.

    The last ones of a row or a column may be only partly in it.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[float, float]


def reduction(size: tuple[int, int], orientation: int, preprocess: Preprocess) -> int:
    """By how much (8, 4, 2 or 1) a picture of `size` (width, height) may be reduced in decoding.

    0 where it is too long to be resized whole, and for one without pixels.
    """
    if not can_be_whole(size):
        return 0
    upright = size[::-1] if orientation >= 5 else size
    scaled = scaled_size(upright, preprocess)
    spare = min(upright[0] / scaled[0], upright[1] / scaled[1]) / MARGIN
    return next(factor for factor in (8, 4, 2, 1) if factor <= spare or factor == 1)


def decode_reduced(data: bytes, mode: str, size: tuple[int, int], factor: int) -> Reduced | None:
    """A JPEG of `mode` (Pillow's) and `size` at 1 / `factor`; None for whatever is not plain.

    That is for Pillow to decode, or to say what is wrong: other colours than RGB and grey, data of
    which the decoder has anything to say, or another picture than its header tells.
    """
    if mode not in ("RGB", "L"):
        return None
    width, height = -(-size[0] // factor), -(-size[1] // factor)
    try:
        # It takes the smallest of its scales that is no smaller than this.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return Reduced(pixels, (size[0] / factor, size[1] / factor))
