"""Bytes to pixels: pure functions, the same pixels as open_clip's own preprocess, or nearly.

Everything a decoder may meet in hostile bytes ends as a `MediaError` with a reason of the closed
list; nothing here reads, logs or guesses.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from transforms import exif
from transforms.colour import Recolour, plain, to_srgb
from transforms.fastjpeg import decode_reduced, reduction
from transforms.fitting import can_be_whole, fit, fit_pixels
from transforms.headers import check_header, ends_early, kind_of, too_many_pixels
from transforms.records import Decode, MediaError, Preprocess, Reason

# We refuse bombs from the header ourselves, with a limit that the user sets; Pillow's own limit
# would otherwise speak first, and differently.
Image.MAX_IMAGE_PIXELS = None
# What is wrong with a picture is told in its failure, and not on the job's standard error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Pillow's classes by hand: `Image.open` would hide what is wrong with a header, try other kinds,
# and search for plugins, which is not safe among threads. Some of those start programs (EPS).
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
    "AVIF": AvifImageFile,
    "JPEG2000": Jpeg2KImageFile,
}
MAX_ENCODED_BYTES = 8 * 1024 * 1024
"""Larger JPEGs are not kept for a device: some hundreds of them may be waiting for it."""

_BYTES_A_PIXEL = {"GIF": 6, "PNG": 12, "AVIF": 9, "HEIF": 9, "WEBP": 20, "JPEG2000": 20}
"""What decoding takes at most, measured, where it is more than 4: alpha, 16 bits, copies."""

try:
    from pillow_heif import HeifImageFile, register_heif_opener
except ImportError:
    pass
else:
    # One thread each: pictures are decoded side by side already. Only the main picture is wanted.
    register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    _READERS["HEIF"] = HeifImageFile

FORMATS = tuple(_READERS)
"""The kinds that are decoded, by Pillow's names; HEIF where `pillow_heif` is installed."""

# What puts a picture upright, by its orientation (EXIF 2.32, 4.6.4.A).
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

# How they say that data ended early, and that they never learned this kind; collected by cutting
# every format at every twentieth, and from their sources.
_ENDED = re.compile(r"truncated|end of file|only got|no more images|insufficient input|too small")
_UNKNOWN = re.compile(r"unsupported|unknown pixel mode|cannot handle|not supported|not installed")
_RAN_OUT = (EOFError, IndexError, struct.error)

_HEIC_NEEDS = "HEIC pictures need another package: pip install 'beamtag[heic]'"


Room = Callable[[int], contextlib.AbstractContextManager[object]]


class DecodedImage(NamedTuple):
    """`pixels` is `uint8[H, W, 3]` as the model wants it; width and height are the original's.

    In the mode `gpu` it may also be the JPEG's own bytes, `uint8[N]`, for `devicedecoding`.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """`decode_image` with its settings: what the reading stage calls for every object."""

    preprocess: Preprocess
    max_pixels: int
    background: tuple[int, int, int] = (255, 255, 255)
    mode: Decode = "exact"

    def __call__(self, data: bytes, room: Room = contextlib.nullcontext) -> DecodedImage:
        """`decode_image(data, ...)` with these settings."""
        return decode_image(
            data, self.preprocess, self.max_pixels, self.background, room, self.mode
        )


def decode_image(
    data: bytes,
    preprocess: Preprocess,
    max_pixels: int,
    background: tuple[int, int, int] = (255, 255, 255),
    room: Room = contextlib.nullcontext,
    mode: Decode = "exact",
) -> DecodedImage:
    """Decode a picture, turn it upright, flatten it onto `background` and fit it to the model.

    Returns `uint8[H, W, 3]` pixels in sRGB, before normalisation: in the mode `exact` equal to
    those of open_clip's `image_transform_v2` on the same RGB picture, in `fast` nearly equal ones.
    Raises `MediaError`, in every mode the same; a picture of more than `max_pixels` is refused from
    its header, before memory is taken for it. `room` is entered with about the bytes that the
    original takes while it is in memory, so that a caller can bound them.
    """
    if not data:
        raise MediaError(Reason.EMPTY, "the object has no bytes")
    kind = kind_of(data)
    if kind is None:
        raise MediaError(Reason.NOT_AN_IMAGE, f"not a picture: {_opening(data)}")
    if kind not in _READERS:
        raise MediaError(Reason.UNSUPPORTED_IMAGE, _HEIC_NEEDS)
    header = check_header(kind, data, max_pixels)
    try:
        by_itself = header.plain if mode == "fast" else None
        if by_itself is not None:
            # Pillow would have nothing to add, and keeps the interpreter for itself meanwhile.
            colours, size = by_itself
            _refuse_larger(size, max_pixels)
            with room(_memory(kind, size)):
                fast = _decode_fast(data, colours, size, 1, plain, preprocess)
            if fast is not None:
                return fast
        image: Image.Image = _READERS[kind](io.BytesIO(data))
        _refuse_larger(image.size, max_pixels)
        if image.mode in ("I", "F"):
            message = "32-bit pixels have no agreed range: nobody knows what is white"
            raise MediaError(Reason.UNSUPPORTED_IMAGE, message)
        with room(_memory(kind, image.size, header.pixels)):
            if mode == "gpu" and kind == "JPEG" and _is_for_device(image, data):
                size = _upright_size(image.size, exif.orientation(image.info))
                return DecodedImage(np.frombuffer(data, np.uint8), *size)
            if kind == "JPEG" and mode != "exact" and by_itself is None:
                turn = exif.orientation(image.info)
                recolour = _recolour(image, grey=image.mode == "L")
                fast = _decode_fast(data, image.mode, image.size, turn, recolour, preprocess)
                if fast is not None:
                    return fast
            image.load()
            upright = image if kind == "TIFF" else _upright(image)
            flat, recolour = _flatten(upright, kind, data, background)
            if mode != "exact" and can_be_whole(flat.size):
                pixels = fit_pixels(np.array(flat), flat.size, 1, preprocess, recolour)
            else:
                pixels = np.asarray(fit(flat, preprocess, recolour))
    except MemoryError as error:
        raise MediaError(Reason.OUT_OF_MEMORY, "not enough memory to decode") from error
    except _BROKEN as error:
        raise _failure(kind, data, error) from error
    return DecodedImage(pixels, upright.width, upright.height)


def _refuse_larger(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise too_many_pixels(*size, max_pixels)


def _memory(kind: str, size: tuple[int, int], least: int = 0) -> int:
    """About the bytes that decoding takes; of at least so many pixels."""
    return max(least, size[0] * size[1]) * _BYTES_A_PIXEL.get(kind, 4)


def _decode_fast(
    data: bytes,
    mode: str,
    size: tuple[int, int],
    turn: int,
    recolour: Recolour,
    preprocess: Preprocess,
) -> DecodedImage | None:
    """A JPEG of a mode (Pillow's) and size by `fastjpeg`; None where that does not take it."""
    factor = reduction(size, turn, preprocess)
    reduced = decode_reduced(data, mode, size, factor) if factor else None
    if reduced is None:
        return None
    pixels = fit_pixels(reduced.pixels, reduced.size, turn, preprocess, recolour)
    return DecodedImage(pixels, *_upright_size(size, turn))


def _is_for_device(image: Image.Image, data: bytes) -> bool:
    """Whether a JPEG, opened and not loaded, is of the plain kind that a device decodes alike.

    Whole, as far as its end tells: what is cut is for Pillow to refuse.
    """
    return (
        image.mode in ("RGB", "L")
        and can_be_whole(image.size)
        and len(data) <= MAX_ENCODED_BYTES
        and image.info.get("adobe_transform", 1) == 1
        and _recolour(image, grey=image.mode == "L") is plain
        and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    )


def looks_like_image(data: bytes) -> bool:
    """Whether bytes begin with the signature of a picture: of a kind that is decoded, or HEIC."""
    return kind_of(data) is not None


def _failure(kind: str, data: bytes, error: BaseException) -> MediaError:
    """The reason behind a decoder's exception, of which only the words differ."""
    said = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if _UNKNOWN.search(said.lower()):
        return MediaError(Reason.UNSUPPORTED_IMAGE, f"{kind} of a kind not decoded: {said}")
    ran_out = isinstance(error, _RAN_OUT) or isinstance(error.__cause__, _RAN_OUT)
    if ran_out or _ENDED.search(said.lower()) or ends_early(kind, data):
        return MediaError(Reason.TRUNCATED_IMAGE, f"{kind} ends early: {said}")
    return MediaError(Reason.CORRUPT_IMAGE, f"broken {kind}: {said}")


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it rewrites the metadata too, and fails where that is broken.
    # (Not for TIFF, which Pillow turns as it loads it. HEIC is turned too, and says so.)
    turn = exif.orientation(image.info)
    return image if turn == 1 else image.transpose(_TURNS[turn])


def _upright_size(size: tuple[int, int], turn: int) -> tuple[int, int]:
    return size[::-1] if turn >= 5 else size


def _flatten(
    image: Image.Image, kind: str, data: bytes, background: tuple[int, int, int]
) -> tuple[Image.Image, Recolour]:
    """The picture in RGB without transparency, and what its colours still need.

    That is done after the resize, on a fraction of the pixels, where there is nothing to blend.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return to_srgb(profile, "CMYK")(image), plain
    grey = image.mode.startswith("I;16") or image.mode in ("L", "LA", "La", "1")
    later = to_srgb(profile, "L" if grey else "RGB")
    if image.has_transparency_data:
        layered = _layered(image, kind, data)
        if later is not plain:
            colours = later(layered.convert("L" if grey else "RGB"))
            colours.putalpha(layered.getchannel("A"))
            layered = colours
        canvas = Image.new("RGBA", layered.size, (*background, 255))
        canvas.alpha_composite(layered)
        return canvas.convert("RGB"), plain
    recolour = _recolour(image, grey=grey)
    if image.mode.startswith("I;16"):
        image = _eight_bits(image, kind, data)
    return plain(image), recolour


def _recolour(image: Image.Image, *, grey: bool) -> Recolour:
    """What puts a resized RGB picture into sRGB, by the profile of the original."""
    later = to_srgb(image.info.get("icc_profile"), "L" if grey else "RGB")
    if grey and later is not plain:
        return lambda resized: later(resized.getchannel(0))
    return later


def _eight_bits(image: Image.Image, kind: str, data: bytes) -> Image.Image:
    # Pillow's own conversion clips 16 bits to 255 instead of scaling them.
    bits = exif.sample_bits(data) if kind == "TIFF" else 16
    return Image.fromarray((np.asarray(image) >> (4 if bits == 12 else 8)).astype(np.uint8))


def _layered(image: Image.Image, kind: str, data: bytes) -> Image.Image:
    """A picture with transparency as RGBA."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        layered = _eight_bits(image, kind, data).convert("RGBA")
        opaque = np.asarray(image) != transparent
        layered.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
        return layered
    # A PNG's transparent colour is in the samples of the file, which Pillow has scaled to 8 bits.
    if kind == "PNG" and (bits := data[24]) != 8:
        if isinstance(transparent, tuple):
            image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
        elif isinstance(transparent, int) and image.mode in ("1", "L"):
            image.info["transparency"] = transparent * 255 // ((1 << bits) - 1)
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _opening(data: bytes) -> str:
    """The first bytes, as a person can read them: an HTML error page is seen at a glance."""
    return f"begins with {data[:24]!r}"
