"""Decoding as most tests want it: to a small square, or to the pixels that are there."""

from __future__ import annotations

from typing import Any

import pytest

from transforms.decoding import DecodedImage, decode_image
from transforms.records import MediaError, Preprocess, Reason

SQUARE = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))


def decode(data: bytes, max_pixels: int = 10_000_000, **changes: Any) -> DecodedImage:
    return decode_image(data, SQUARE, max_pixels, **changes)


def reason_of(data: bytes, **limits: int) -> Reason:
    with pytest.raises(MediaError) as caught:
        decode(data, **limits)
    return caught.value.reason


def exact(image_size: tuple[int, int]) -> Preprocess:
    """What leaves a picture of this size as it is."""
    return Preprocess((image_size[1], image_size[0]), (0,) * 3, (1,) * 3, "bicubic", "squash")
