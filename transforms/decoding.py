"""Bytes to pixels: pure functions, the same pixels as open_clip's own preprocess.

Everything a decoder may meet in hostile bytes ends as a `MediaError` with a reason of the closed
list; nothing here reads, logs or guesses.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

# Imported for what they register: Pillow's own search for plugins is not safe among threads.
from PIL import (  # isort: skip
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from transforms.records import MediaError, Preprocess, Reason

# We refuse bombs from the header ourselves, with a limit that the user sets; Pillow's own limit
# would otherwise speak first, and differently.
Image.MAX_IMAGE_PIXELS = None

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
        AvifImagePlugin.AvifImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    )
)
"""What is decoded. Pillow knows more; some of that starts other programs (EPS)."""

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

_ORIENTATION_TAG = 0x0112
# What puts a picture upright, by the value of that tag (EXIF 2.32, 4.6.4.A).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow and the libraries below it raise on broken bytes; found by fuzzing, not by promise.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


Room = Callable[[int], contextlib.AbstractContextManager[object]]


class DecodedImage(NamedTuple):
    """`pixels` is `uint8[H, W, 3]` as the model wants it; width and height are the original's."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """`decode_image` with its settings: what the reading stage calls for every object."""

    preprocess: Preprocess
    max_pixels: int
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, data: bytes, room: Room = contextlib.nullcontext) -> DecodedImage:
        """`decode_image(data, ...)` with these settings."""
        return decode_image(data, self.preprocess, self.max_pixels, self.background, room)


def decode_image(
    data: bytes,
    preprocess: Preprocess,
    max_pixels: int,
    background: tuple[int, int, int] = (255, 255, 255),
    room: Room = contextlib.nullcontext,
) -> DecodedImage:
    """Decode a picture, turn it upright, flatten it onto `background` and fit it to the model.

    Returns `uint8[H, W, 3]` pixels, before normalisation, equal to those of open_clip's
    `image_transform_v2` on the same RGB picture. Raises `MediaError`; a picture of more than
    `max_pixels` is refused from its header, before memory is taken for it. `room` is entered with
    the number of pixels while the original is in memory, so that a caller can bound them.
    """
    if not data:
        raise MediaError(Reason.EMPTY, "the object has no bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if kind := _looks_like(data):
            message = f"begins as a {kind}, but its header is broken"
            raise MediaError(Reason.CORRUPT_IMAGE, message) from None
        raise MediaError(Reason.NOT_AN_IMAGE, f"not a picture: {_opening(data)}") from None
    except _BROKEN as error:
        raise MediaError(Reason.CORRUPT_IMAGE, _describe(error)) from error
    if image.width * image.height > max_pixels:
        raise MediaError(
            Reason.TOO_MANY_PIXELS,
            f"{image.width} x {image.height} pixels, more than the {max_pixels} allowed",
        )
    if image.mode in ("I", "F"):
        message = "32-bit pixels have no agreed range: nobody knows what is white"
        raise MediaError(Reason.UNSUPPORTED_IMAGE, message)
    try:
        with room(image.width * image.height):
            image.load()
            upright = _upright(image)
            pixels = np.asarray(fit(_to_rgb(upright, background), preprocess))
    except MemoryError as error:
        raise MediaError(Reason.OUT_OF_MEMORY, "not enough memory to decode") from error
    except _BROKEN as error:
        raise MediaError(Reason.CORRUPT_IMAGE, _describe(error)) from error
    return DecodedImage(pixels, upright.width, upright.height)


def fit(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize an RGB picture to the model's input size, the way the model was trained on.

    The geometry is open_clip's (`image_transform_v2`) and torchvision's (`Resize`, `CenterCrop`).
    """
    height, width = preprocess.size
    resampling = _RESAMPLING[preprocess.interpolation]
    match preprocess.resize_mode:
        case "squash":
            return image.resize((width, height), resampling)
        case "longest":
            return _fit_longest(image, width, height, resampling, preprocess.fill_color)
        case "shortest":
            return _fit_shortest(image, width, height, resampling)


def _fit_shortest(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling
) -> Image.Image:
    """Resize so that the picture covers the target, and keep the middle.

    Only the part that is kept is resized: Pillow's `box` takes the same source pixels with the
    same weights, so this gives the pixels of resize-then-crop without making those cut away
    (and a 1 x 20,000 picture does not become one of a billion pixels).
    """
    if width == height:
        # torchvision's Resize(int): the short side is met, the long side is rounded down.
        if image.width <= image.height:
            scaled_width, scaled_height = width, int(width * image.height / image.width)
        else:
            scaled_width, scaled_height = int(height * image.width / image.height), height
    else:
        # open_clip's ResizeKeepRatio: both sides rounded; it is always bicubic there.
        ratio = min(image.height / height, image.width / width)
        scaled_width, scaled_height = round(image.width / ratio), round(image.height / ratio)
        resampling = Image.Resampling.BICUBIC
    left = round((scaled_width - width) / 2.0)
    top = round((scaled_height - height) / 2.0)
    across, down = image.width / scaled_width, image.height / scaled_height
    box = (
        left * across,
        top * down,
        min((left + width) * across, image.width),
        min((top + height) * down, image.height),
    )
    return image.resize((width, height), resampling, box=box)


def _fit_longest(
    image: Image.Image, width: int, height: int, resampling: Image.Resampling, fill: int
) -> Image.Image:
    """Resize so that the whole picture fits into the target, and pad around it."""
    ratio = max(image.height / height, image.width / width)
    scaled = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    canvas = Image.new("RGB", (width, height), (fill, fill, fill))
    canvas.paste(
        image.resize(scaled, resampling), ((width - scaled[0]) // 2, (height - scaled[1]) // 2)
    )
    return canvas


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it rewrites the metadata too, and fails where that is broken.
    turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits to 255 instead of scaling them.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*background, 255))
        canvas.alpha_composite(layered)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _looks_like(data: bytes) -> str | None:
    """The kind whose signature these bytes begin with, by Pillow's own plugins."""
    for kind in FORMATS:
        _, accepts = Image.OPEN[kind]
        if accepts is not None and accepts(data[:16]):
            return kind
    return None


def _opening(data: bytes) -> str:
    """The first bytes, as a person can read them: an HTML error page is seen at a glance."""
    return f"begins with {data[:24]!r}"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
