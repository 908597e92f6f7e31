"""Pixels that a file must give: what all varieties of pictures are told by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 40, 24


class Variety(NamedTuple):
    """A file, the RGB pixels it must give, and by how many levels each may differ."""

    name: str
    data: bytes
    pixels: Pixels
    tolerance: float = 0


def rgb(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))


def grey(levels: npt.NDArray[np.generic]) -> Pixels:
    """Grey levels as RGB pixels."""
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def on_white(image: Image.Image) -> Pixels:
    """RGBA over white, by the formula."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def see_through(image: Image.Image) -> Image.Image:
    """The picture, from clear at its left to solid at its right."""
    ramp = np.linspace(0, 255, image.width).round().astype(np.uint8)
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.repeat(ramp[None], image.height, axis=0)))
    return clear


def packed(samples: npt.NDArray[np.integer], bits: int) -> list[bytes]:
    """Rows of samples of so many bits, the first in the highest."""
    spread = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in spread]
