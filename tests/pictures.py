"""Files of every kind and variety that is decoded, each with the pixels that it must give."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import hostile
import numpy as np
import numpy.typing as npt
from conftest import encoded, picture
from hostile import chunk
from PIL import Image

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 40, 24
WHITE = (255, 255, 255)


class Variety(NamedTuple):
    """A file, the RGB pixels it must give, and by how many levels each may differ."""

    name: str
    data: bytes
    pixels: Pixels
    tolerance: float = 0


def varieties() -> Iterator[Variety]:
    """Every variety but HEIC's, which needs a package."""
    image = picture(WIDTH, HEIGHT)
    for family in (pngs, jpegs, webps, gifs, tiffs, bmps, avifs, jpeg2000s):
        yield from family(image)


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


def png(
    bits: int, colour: int, rows: list[bytes], before: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG by hand, without filters: for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, interlace)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def packed(samples: npt.NDArray[np.integer], bits: int) -> list[bytes]:
    """Rows of samples of so many bits, the first in the highest."""
    spread = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in spread]


def interlaced(pixels: Pixels) -> list[bytes]:
    """The rows of the seven passes of Adam7 (PNG specification, 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes.append((1, 0, 2, 1))
    return [
        row.tobytes()
        for top, left, down, across in passes
        for row in pixels[top::down, left::across]
    ]


def pngs(image: Image.Image) -> Iterator[Variety]:
    pixels = rgb(image)
    dark = np.asarray(image.convert("L"))
    clear = see_through(image)
    yield Variety("png-rgb", encoded(image, "PNG"), pixels)
    yield Variety("png-interlaced", png(8, 2, interlaced(pixels), interlace=1), pixels)
    deep = (pixels * 250.0).astype(">u2")
    yield Variety(
        "png-rgb-16", png(16, 2, [row.tobytes() for row in deep]), (deep >> 8).astype("u1")
    )
    for bits in (1, 2, 4, 8):
        samples = dark >> (8 - bits)
        levels = samples.astype(int) * 255 // (2**bits - 1)
        yield Variety(f"png-grey-{bits}", png(bits, 0, packed(samples, bits)), grey(levels))
        # One of the levels is transparent, and told in samples of the file.
        hidden = int(samples[0, 0])
        seen = np.where(samples == hidden, 255, levels)
        clear_level = png(bits, 0, packed(samples, bits), chunk(b"tRNS", struct.pack(">H", hidden)))
        yield Variety(f"png-grey-{bits}-transparent", clear_level, grey(seen))
    wide = (dark * 250.0).astype(">u2")
    rows = [row.tobytes() for row in wide]
    yield Variety("png-grey-16", png(16, 0, rows), grey(wide >> 8))
    level = chunk(b"tRNS", struct.pack(">H", int(wide[0, 0])))
    seen = np.where(wide == wide[0, 0], 255, wide >> 8)
    yield Variety("png-grey-16-transparent", png(16, 0, rows, level), grey(seen))
    for bits in (1, 2, 4, 8):
        few = image.quantize(2**bits)
        palette = few.getpalette() or []
        options = chunk(b"PLTE", bytes(palette[: 3 * 2**bits]).ljust(3 * 2**bits, b"\0"))
        indices = packed(np.asarray(few), bits)
        yield Variety(f"png-palette-{bits}", png(bits, 3, indices, options), rgb(few))
    few = image.quantize(8)
    seen = np.where((np.asarray(few) == 3)[..., None], 255, rgb(few)).astype(np.uint8)
    yield Variety("png-palette-transparent", encoded(few, "PNG", transparency=3), seen)
    yield Variety("png-rgba", encoded(clear, "PNG"), on_white(clear), 1)
    faint = clear.convert("LA")
    yield Variety("png-grey-alpha", encoded(faint, "PNG"), on_white(faint), 1)
    four = np.asarray(clear).astype(">u2") * 257
    yield Variety("png-rgba-16", png(16, 6, [row.tobytes() for row in four]), on_white(clear), 1)
    one = pixels[3, 4]
    seen = np.where((pixels == one).all(axis=2, keepdims=True), 255, pixels).astype(np.uint8)
    for bits in (8, 16):
        samples = pixels.astype(">u2") * 257 if bits == 16 else pixels
        level = chunk(
            b"tRNS", struct.pack(">HHH", *(int(s) * (257 if bits == 16 else 1) for s in one))
        )
        rows = [row.tobytes() for row in samples]
        yield Variety(f"png-rgb-{bits}-transparent", png(bits, 2, rows, level), seen)
    others = [picture(WIDTH, HEIGHT, 9)]
    moving = encoded(image, "PNG", save_all=True, append_images=others)
    yield Variety("apng", moving, pixels)
    cover = encoded(image, "PNG", save_all=True, append_images=others * 2, default_image=True)
    yield Variety("apng-cover", cover, pixels)


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
    frame = hostile.segment(0xC3, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0))
    scan = hostile.segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    return b"\xff\xd8" + frame + hostile.segment(0xC4, table) + scan + coded + b"\xff\xd9"


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


def tiffs(image: Image.Image) -> Iterator[Variety]:
    pixels, dark = rgb(image), image.convert("L")
    clear, ink, few = see_through(image), image.convert("CMYK"), image.quantize(16)
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
        yield Variety(f"tiff-{packing}", encoded(image, "TIFF", compression=packing), pixels)
    other = picture(WIDTH, HEIGHT, 9)
    pages = encoded(image, "TIFF", save_all=True, append_images=[other])
    yield Variety("tiff-pages", pages, pixels)
    yield Variety("tiff-big", encoded(image, "TIFF", big_tiff=True), pixels)
    yield Variety("tiff-grey", encoded(dark, "TIFF"), rgb(dark))
    yield Variety("tiff-palette", encoded(few, "TIFF"), rgb(few))
    yield Variety("tiff-rgba", encoded(clear, "TIFF"), on_white(clear), 1)
    yield Variety("tiff-cmyk", encoded(ink, "TIFF", compression="tiff_lzw"), rgb(ink))
    fax = image.convert("1")
    yield Variety("tiff-fax", encoded(fax, "TIFF", compression="group4"), rgb(fax))
    jpeg = encoded(image, "TIFF", compression="jpeg", quality=98)
    yield Variety("tiff-jpeg", jpeg, pixels, 6)
    # Muted: CIE L*a*b* in bytes has colours that sRGB has not, and coarse steps.
    muted = image.point(lambda level: 80 + level // 3)
    yield Variety("tiff-lab", encoded(muted.convert("LAB"), "TIFF"), rgb(muted), 4)
    wide = np.asarray(dark).astype(np.uint16) * np.uint16(250)
    yield Variety("tiff-grey-16", encoded(Image.fromarray(wide), "TIFF"), grey(wide >> 8))
    yield Variety("tiff-grey-16-big-endian", _big_endian(wide), grey(wide >> 8))
    twelve = np.asarray(dark).astype(np.uint16) * 16 + 7
    yield Variety("tiff-grey-12", _twelve_bits(twelve), grey(twelve >> 4))
    levels = np.asarray(dark)
    yield Variety("tiff-white-is-zero", _grey(levels, 0), grey(255 - levels))
    yield Variety("tiff-tiles", _tiles(), grey(np.arange(HEIGHT)[:, None] + np.arange(WIDTH)[None]))


def _tags(bits: int, meaning: int, size: int) -> list[tuple[int, int, int, int]]:
    return [
        (256, 4, 1, WIDTH),
        (257, 4, 1, HEIGHT),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, meaning),
        (273, 4, 1, hostile.behind(9)),
        (277, 3, 1, 1),
        (278, 4, 1, HEIGHT),
        (279, 4, 1, size),
    ]


def _grey(levels: Pixels, meaning: int) -> bytes:
    return hostile.tiff(_tags(8, meaning, levels.size), levels.tobytes())


def _twelve_bits(samples: npt.NDArray[np.uint16]) -> bytes:
    rows = b"".join(packed(samples, 12))
    return hostile.tiff(_tags(12, 1, len(rows)), rows)


def _big_endian(samples: npt.NDArray[np.uint16]) -> bytes:
    rows = samples.astype(">u2").tobytes()
    tags = _tags(16, 1, len(rows))
    lines = b"".join(
        struct.pack(">HHI", *tag[:3])
        + (struct.pack(">HH", tag[3], 0) if tag[1] == 3 else struct.pack(">I", tag[3]))
        for tag in tags
    )
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + lines + bytes(4) + rows


def _tiles() -> bytes:
    """Six tiles of 16 x 16 of a slope, which reach beyond the picture."""
    slope = (np.arange(32)[:, None] + np.arange(48)[None]).astype(np.uint8)
    tiles = [slope[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    tags = [tag for tag in _tags(8, 1, 0) if tag[0] not in (273, 278, 279)]
    first = hostile.behind(10)
    tags += [(322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 6, first), (325, 4, 6, first + 24)]
    places = struct.pack("<6I", *(first + 48 + 256 * tile for tile in range(6)))
    return hostile.tiff(tags, places + struct.pack("<6I", *[256] * 6) + b"".join(tiles))


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
