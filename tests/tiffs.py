"""Every variety of TIFF, by hand where Pillow does not write them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from conftest import encoded, picture
from pieces import behind, tiff
from PIL import Image
from pixels import HEIGHT, WIDTH, Pixels, Variety, grey, on_white, packed, rgb, see_through


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
        (273, 4, 1, behind(9)),
        (277, 3, 1, 1),
        (278, 4, 1, HEIGHT),
        (279, 4, 1, size),
    ]


def _grey(levels: Pixels, meaning: int) -> bytes:
    return tiff(_tags(8, meaning, levels.size), levels.tobytes())


def _twelve_bits(samples: npt.NDArray[np.uint16]) -> bytes:
    rows = b"".join(packed(samples, 12))
    return tiff(_tags(12, 1, len(rows)), rows)


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
    first = behind(10)
    tags += [(322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 6, first), (325, 4, 6, first + 24)]
    places = struct.pack("<6I", *(first + 48 + 256 * tile for tile in range(6)))
    return tiff(tags, places + struct.pack("<6I", *[256] * 6) + b"".join(tiles))
