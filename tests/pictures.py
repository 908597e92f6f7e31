"""Files of every kind and variety that is decoded, each with the pixels that it must give."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from conftest import encoded, picture
from pieces import segment
from PIL import Image
from pixels import HEIGHT, WIDTH, Pixels, Variety, grey, on_white, rgb, see_through
from pngs import pngs
from tiffs import tiffs


def varieties() -> Iterator[Variety]:
    """Every variety but HEIC's, which needs a package."""
    image = picture(WIDTH, HEIGHT)
    for family in (pngs, jpegs, webps, gifs, tiffs, bmps, avifs, jpeg2000s):
        yield from family(image)


def jpegs(image: Image.Image) -> Iterator[Variety]:
    for name, options in {
        "baseline": {},
        "progressive": {"progressive": True},
        "optimized": {"optimize": True},
        "restarts": {"restart_marker_rows": 1},
    }.items():
        data = encoded(image, "JPEG", quality=95, subsampling=0, **options)
        yield Variety(f"jpeg-{name}", data, rgb(image), 20)
    dark = image.convert("L")
    yield Variety("jpeg-grey", encoded(dark, "JPEG", quality=95), rgb(dark), 8)
    ink = image.convert("CMYK")
    yield Variety("jpeg-cmyk", encoded(ink, "JPEG", quality=95), rgb(ink), 12)
    levels = np.asarray(dark)
    yield Variety("jpeg-lossless", lossless_jpeg(levels), grey(levels))


def lossless_jpeg(levels: Pixels) -> bytes:
    """A grey JPEG of the lossless process (ITU T.81, annex H), each level told from the last."""
    bits = ""
    for y, row in enumerate(levels.astype(int)):
        for x, level in enumerate(row):
            before = row[x - 1] if x else levels[y - 1, 0] if y else 128
            step = int(level) - int(before)
            size = abs(step).bit_length()
            code = step if step > 0 else step + (1 << size) - 1
            bits += format(size, "04b") + (format(code, f"0{size}b") if size else "")
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = levels.shape
    table = bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])  # nine sizes, each in four bits
    frame = segment(0xC3, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    return b"\xff\xd8" + frame + segment(0xC4, table) + scan + coded + b"\xff\xd9"


def webps(image: Image.Image) -> Iterator[Variety]:
    clear = see_through(image)
    exact = {"lossless": True, "exact": True}
    yield Variety("webp-lossless", encoded(image, "WEBP", **exact), rgb(image))
    yield Variety("webp-lossless-alpha", encoded(clear, "WEBP", **exact), on_white(clear), 1)
    # Half of the colours' resolution is lost, and there is much noise in them.
    yield Variety("webp-lossy", encoded(image, "WEBP", quality=100), rgb(image), 40)
    moving = encoded(
        image, "WEBP", save_all=True, append_images=[picture(WIDTH, HEIGHT, 9)], **exact
    )
    yield Variety("webp-animated", moving, rgb(image))


def gifs(image: Image.Image) -> Iterator[Variety]:
    few = image.quantize(32)
    yield Variety("gif", encoded(few, "GIF", interlace=0), rgb(few))
    yield Variety("gif-interlaced", encoded(few, "GIF", interlace=1), rgb(few))
    seen = np.where((np.asarray(few) == 3)[..., None], 255, rgb(few)).astype(np.uint8)
    yield Variety("gif-transparent", encoded(few, "GIF", transparency=3, optimize=False), seen)
    other = picture(WIDTH, HEIGHT, 9).quantize(32)
    yield Variety(
        "gif-animated", encoded(few, "GIF", save_all=True, append_images=[other]), rgb(few)
    )


def bmps(image: Image.Image) -> Iterator[Variety]:
    for name, other in {
        "rgb": image,
        "palette": image.quantize(200),
        "grey": image.convert("L"),
        "one-bit": image.convert("1"),
    }.items():
        yield Variety(f"bmp-{name}", encoded(other, "BMP"), rgb(other))
    upside = bytearray(encoded(image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP"))
    struct.pack_into("<i", upside, 22, -HEIGHT)
    yield Variety("bmp-top-down", bytes(upside), rgb(image))
    few = image.quantize(16)
    runs = b"".join(
        b"".join(b"\1" + bytes([index]) for index in row) + b"\0\0" for row in np.asarray(few)[::-1]
    )
    head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(runs) + 2, 0, 0, 256, 0)
    colours = bytes(few.getpalette() or []).ljust(768, b"\0")
    palette = b"".join(colours[at : at + 3][::-1] + b"\0" for at in range(0, 768, 3))
    body = head + palette + runs + b"\0\1"
    start = struct.pack("<2sIII", b"BM", 14 + len(body), 0, 14 + len(head) + len(palette))
    yield Variety("bmp-runs", start + body, rgb(few))


def avifs(image: Image.Image) -> Iterator[Variety]:
    best = {"quality": 100, "subsampling": "4:4:4"}
    clear = see_through(image)
    yield Variety("avif", encoded(image, "AVIF", **best), rgb(image), 4)
    yield Variety("avif-alpha", encoded(clear, "AVIF", **best), on_white(clear), 5)
    moving = encoded(
        image, "AVIF", save_all=True, append_images=[picture(WIDTH, HEIGHT, 9)], **best
    )
    yield Variety("avif-animated", moving, rgb(image), 4)


def jpeg2000s(image: Image.Image) -> Iterator[Variety]:
    clear = see_through(image)
    boxed = encoded(image, "JPEG2000")
    yield Variety("jpeg2000", boxed, rgb(image))
    yield Variety("jpeg2000-bare", boxed[boxed.find(b"\xff\x4f\xff\x51") :], rgb(image))
    yield Variety("jpeg2000-alpha", encoded(clear, "JPEG2000"), on_white(clear), 1)


def heics(image: Image.Image) -> Iterator[Variety]:
    best = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    clear = see_through(image)
    yield Variety("heic", encoded(image, "HEIF", **best), rgb(image))
    yield Variety("heic-alpha", encoded(clear, "HEIF", **best), on_white(clear), 1)
    yield Variety("heic-lossy", encoded(image, "HEIF", quality=95, chroma=444), rgb(image), 12)
    pages = encoded(image, "HEIF", save_all=True, append_images=[picture(WIDTH, HEIGHT, 9)], **best)
    yield Variety("heic-pages", pages, rgb(image))
    dark = image.convert("L")
    yield Variety("heic-grey", encoded(dark, "HEIF", quality=-1), rgb(dark))
