"""Decoded pictures to the size that a model wants, in open_clip's geometry.

`fit` does it by Pillow, as the model's own preprocess does. `fit_pixels` does it by torch, several
times as fast, on pixels that a decoder has already made smaller; of the same pixels it gives the
same ones as Pillow, but for rounding by a level, seldom two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from transforms.colour import Recolour, plain
from transforms.records import Preprocess

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

LONGEST = 8
"""How many times as long as it is wide a picture may be that `fit_pixels` resizes whole."""


def fit(image: Image.Image, preprocess: Preprocess, recolour: Recolour = plain) -> Image.Image:
    """Resize an RGB picture to the model's input size, the way the model was trained on.

    `recolour` is done to the resized picture, but not to what is padded around it. The geometry is
    open_clip's (`image_transform_v2`) and torchvision's (`Resize`, `CenterCrop`).
    """
    height, width = preprocess.size
    resampling = _RESAMPLING[interpolation(preprocess)]
    scaled = scaled_size(image.size, preprocess)
    if preprocess.resize_mode != "shortest":
        return _padded(recolour(image.resize(scaled, resampling)), preprocess)
    # Only the part that is kept is resized: Pillow's `box` takes the same source pixels with the
    # same weights, so this gives the pixels of resize-then-crop without making those cut away (and
    # a 1 x 20,000 picture does not become one of a billion pixels).
    left, top = _corner(scaled, preprocess)
    across, down = image.width / scaled[0], image.height / scaled[1]
    box = (
        left * across,
        top * down,
        min((left + width) * across, image.width),
        min((top + height) * down, image.height),
    )
    return recolour(image.resize((width, height), resampling, box=box))


def fit_pixels(
    pixels: Pixels,
    size: tuple[float, float],
    orientation: int,
    preprocess: Preprocess,
    recolour: Recolour = plain,
) -> Pixels:
    """As `fit`, of `uint8[h, w, 3]` pixels; gives `uint8[H, W, 3]`.

    `size` is (width, height) of the whole picture in units of `pixels`, of which the last column
    and row may be only part of it: a 598 pixels wide picture at a quarter of its size has 150
    columns and is 149.5 wide. `orientation` is EXIF's; it is resized first and turned then.
    """
    import torch

    # For bytes in channels-last order torch has vector code of its own. That they are, it tells by
    # the strides, also by that of the batch of one, which other ways than reshape leave wrong.
    batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    return _fit_batch(batch, size, orientation, preprocess, recolour)


def fit_tensor(image: torch.Tensor, orientation: int, preprocess: Preprocess) -> Pixels:
    """As `fit`, of a `uint8[3, h, w]` tensor on any device; gives `uint8[H, W, 3]`."""
    size = (image.shape[2], image.shape[1])
    # Other devices than the CPU resize no bytes.
    return _fit_batch(image[None].float(), size, orientation, preprocess, plain)


def can_be_whole(size: tuple[int, int]) -> bool:
    """Whether a picture has a shape that `fit_pixels` takes."""
    return max(size) <= LONGEST * min(size)


def scaled_size(size: tuple[float, float], preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) that a picture of `size` is resized to, before it is cropped or padded."""
    across, down = size
    height, width = preprocess.size
    match preprocess.resize_mode:
        case "squash":
            return width, height
        case "longest":
            ratio = max(down / height, across / width)
            return max(1, round(across / ratio)), max(1, round(down / ratio))
        case "shortest" if width == height:
            # torchvision's Resize(int): the short side is met, the long side is rounded down.
            if across <= down:
                return width, int(width * down / across)
            return int(height * across / down), height
        case "shortest":
            # open_clip's ResizeKeepRatio: both sides rounded.
            ratio = min(down / height, across / width)
            return round(across / ratio), round(down / ratio)


def interpolation(preprocess: Preprocess) -> str:
    """`bicubic` or `bilinear`; open_clip's ResizeKeepRatio is always the first."""
    height, width = preprocess.size
    keeps_ratio = preprocess.resize_mode == "shortest" and width != height
    return "bicubic" if keeps_ratio else preprocess.interpolation


def _corner(scaled: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Where the middle of a resized picture, the model's input, begins: from left and top."""
    height, width = preprocess.size
    return round((scaled[0] - width) / 2.0), round((scaled[1] - height) / 2.0)


def _padded(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    if preprocess.resize_mode != "longest":
        return image
    height, width = preprocess.size
    canvas = Image.new("RGB", (width, height), (preprocess.fill_color,) * 3)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _fit_batch(
    batch: torch.Tensor,
    size: tuple[float, float],
    orientation: int,
    preprocess: Preprocess,
    recolour: Recolour,
) -> Pixels:
    """A batch of one picture, resized whole, turned upright, and cropped or padded then."""
    import torch

    lies = orientation >= 5
    scaled = scaled_size(size[::-1] if lies else size, preprocess)
    across, down = scaled[::-1] if lies else scaled
    resized = torch.nn.functional.interpolate(
        batch,
        # Not by the sizes in whole pixels, which would stretch the picture where one is only in
        # part in it. A hair more than wanted, so that rounding down cannot lose the last pixel.
        scale_factor=((down + 1e-6) / size[1], (across + 1e-6) / size[0]),
        mode=interpolation(preprocess),
        antialias=True,
        recompute_scale_factor=False,
    )
    if resized.is_floating_point():
        resized = resized.round().clamp(0, 255).to(torch.uint8)
    # Views are numpy's: each of torch's lets go of the interpreter, and waits to have it back.
    whole = resized.numpy(force=True)[0].transpose(1, 2, 0)
    upright = _turned(whole[:down, :across], orientation)
    if preprocess.resize_mode == "shortest":
        height, width = preprocess.size
        left, top = _corner(scaled, preprocess)
        upright = upright[top : top + height, left : left + width]
    fitted = np.ascontiguousarray(upright)
    if recolour is plain and preprocess.resize_mode != "longest":
        return fitted
    return np.asarray(_padded(recolour(Image.fromarray(fitted)), preprocess))


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels put upright, as a view (EXIF 2.32, 4.6.4.A)."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if 5 <= orientation <= 8 else pixels
