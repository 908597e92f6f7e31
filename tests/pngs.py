"""Every variety of PNG: most are made by hand, as Pillow does not write them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from conftest import encoded, picture
from pieces import chunk, png
from PIL import Image
from pixels import HEIGHT, WIDTH, Pixels, Variety, grey, on_white, packed, rgb, see_through


def _interlaced(pixels: Pixels) -> list[bytes]:
    """The rows of the seven passes of Adam7 (PNG specification, 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes.append((1, 0, 2, 1))
    return [
        row.tobytes()
        for top, left, down, across in passes
        for row in pixels[top::down, left::across]
    ]


def _png(
    bits: int, colour: int, rows: list[bytes], before: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG of rows without filters."""
    pixels = b"".join(b"\0" + row for row in rows)
    return png(WIDTH, HEIGHT, pixels, before, bits, colour, interlace)


def pngs(image: Image.Image) -> Iterator[Variety]:
    pixels = rgb(image)
    dark = np.asarray(image.convert("L"))
    clear = see_through(image)
    yield Variety("png-rgb", encoded(image, "PNG"), pixels)
    yield Variety("png-interlaced", _png(8, 2, _interlaced(pixels), interlace=1), pixels)
    deep = (pixels * 250.0).astype(">u2")
    yield Variety(
        "png-rgb-16", _png(16, 2, [row.tobytes() for row in deep]), (deep >> 8).astype("u1")
    )
    for bits in (1, 2, 4, 8):
        samples = dark >> (8 - bits)
        levels = samples.astype(int) * 255 // (2**bits - 1)
        yield Variety(f"png-grey-{bits}", _png(bits, 0, packed(samples, bits)), grey(levels))
        # One of the levels is transparent, and told in samples of the file.
        hidden = int(samples[0, 0])
        seen = np.where(samples == hidden, 255, levels)
        clear_level = _png(
            bits, 0, packed(samples, bits), chunk(b"tRNS", struct.pack(">H", hidden))
        )
        yield Variety(f"png-grey-{bits}-transparent", clear_level, grey(seen))
    wide = (dark * 250.0).astype(">u2")
    rows = [row.tobytes() for row in wide]
    yield Variety("png-grey-16", _png(16, 0, rows), grey(wide >> 8))
    level = chunk(b"tRNS", struct.pack(">H", int(wide[0, 0])))
    seen = np.where(wide == wide[0, 0], 255, wide >> 8)
    yield Variety("png-grey-16-transparent", _png(16, 0, rows, level), grey(seen))
    for bits in (1, 2, 4, 8):
        few = image.quantize(2**bits)
        palette = few.getpalette() or []
        options = chunk(b"PLTE", bytes(palette[: 3 * 2**bits]).ljust(3 * 2**bits, b"\0"))
        indices = packed(np.asarray(few), bits)
        yield Variety(f"png-palette-{bits}", _png(bits, 3, indices, options), rgb(few))
    few = image.quantize(8)
    seen = np.where((np.asarray(few) == 3)[..., None], 255, rgb(few)).astype(np.uint8)
    yield Variety("png-palette-transparent", encoded(few, "PNG", transparency=3), seen)
    yield Variety("png-rgba", encoded(clear, "PNG"), on_white(clear), 1)
    faint = clear.convert("LA")
    yield Variety("png-grey-alpha", encoded(faint, "PNG"), on_white(faint), 1)
    four = np.asarray(clear).astype(">u2") * 257
    yield Variety("png-rgba-16", _png(16, 6, [row.tobytes() for row in four]), on_white(clear), 1)
    one = pixels[3, 4]
    seen = np.where((pixels == one).all(axis=2, keepdims=True), 255, pixels).astype(np.uint8)
    for bits in (8, 16):
        samples = pixels.astype(">u2") * 257 if bits == 16 else pixels
        level = chunk(
            b"tRNS", struct.pack(">HHH", *(int(s) * (257 if bits == 16 else 1) for s in one))
        )
        rows = [row.tobytes() for row in samples]
        yield Variety(f"png-rgb-{bits}-transparent", _png(bits, 2, rows, level), seen)
    others = [picture(WIDTH, HEIGHT, 9)]
    moving = encoded(image, "PNG", save_all=True, append_images=others)
    yield Variety("apng", moving, pixels)
    cover = encoded(image, "PNG", save_all=True, append_images=others * 2, default_image=True)
    yield Variety("apng-cover", cover, pixels)
