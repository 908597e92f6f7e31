from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import encoded, picture
from PIL import Image, ImageCms

from transforms import colour
from transforms.colour import plain, to_srgb
from transforms.decoding import decode_image
from transforms.records import Preprocess

# Columns are red, green and blue in XYZ of the profile connection space (D50).
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
DISPLAY_P3 = np.array(
    [[0.5151, 0.292, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
)
ADOBE_RGB = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
SWAPPED = SRGB[:, [2, 1, 0]]
WHITE = (0.9642, 1.0, 0.8249)


def s15(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def curve(gamma: float | None) -> bytes:
    """A tone curve: sRGB's own as a table of 1,024, or a power."""
    if gamma is not None:
        return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    table = (linear(np.linspace(0, 255, 1024)) * 65535).round().astype(">u2")
    return b"curv" + struct.pack(">II", 0, 1024) + table.tobytes()


def profile(space: bytes, tags: dict[bytes, bytes], device: bytes = b"mntr", pcs: bytes = b"XYZ "):
    """An ICC profile of version 2.4 with these tags."""
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = place + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, device, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + s15(*WHITE) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def screen(columns: np.ndarray, gamma: float | None) -> bytes:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(*WHITE), b"desc": b"desc" + bytes(90)}
    for letter, column in zip(b"rgb", columns.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + s15(*column)
        tags[bytes([letter]) + b"TRC"] = curve(gamma)
    return profile(b"RGB ", tags)


def grey(gamma: float) -> bytes:
    return profile(b"GRAY", {b"wtpt": b"XYZ \0\0\0\0" + s15(*WHITE), b"kTRC": curve(gamma)})


def press() -> bytes:
    """A CMYK profile of sixteen corners: all of them white but for cyan, which is L* = 50."""
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    steps = bytes(range(256))
    # Lab in 8 bits: L* of 255 is 100, a* and b* of 128 are 0. Black ink is the fastest index.
    corners = b"".join(bytes([128 if corner & 8 else 255, 128, 128]) for corner in range(16))
    table = head + steps * 4 + corners + steps * 3
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15(*WHITE), b"A2B0": table, b"A2B1": table}
    return profile(b"CMYK", tags, b"prtr", b"Lab ")


def linear(levels: np.ndarray) -> np.ndarray:
    part = levels / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def levels(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def expected(pixels: np.ndarray, columns: np.ndarray, gamma: float | None) -> np.ndarray:
    """The pixels in sRGB, by the formulas."""
    light = linear(pixels) if gamma is None else (pixels / 255) ** gamma
    return levels(light @ columns.T @ np.linalg.inv(SRGB).T)


def as_it_is(image: Image.Image, resize_mode: str = "squash") -> Preprocess:
    return Preprocess((image.height, image.width), (0,) * 3, (1,) * 3, "bicubic", resize_mode, 127)


def decoded(image: Image.Image, kind: str = "PNG", mode: str = "squash", **options) -> np.ndarray:
    data = encoded(image, kind, **options)
    return decode_image(data, as_it_is(image, mode), 10**6).pixels.astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("columns", "gamma"),
    [(DISPLAY_P3, None), (ADOBE_RGB, 563 / 256), (SWAPPED, None), (SRGB, 1.0)],
    ids=["display-p3", "adobe-rgb", "swapped", "linear"],
)
def test_pixels_are_converted_to_srgb(kind, columns, gamma):
    # Not the darkest: there an 8-bit matrix profile has steps of its own.
    image = picture(40, 30).point(lambda level: 32 + level * 3 // 4)
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(image, kind, icc_profile=screen(columns, gamma), **options)
    assert np.abs(pixels - expected(np.asarray(image), columns, gamma)).max() <= 2.5


def test_lossy_kinds_bring_their_profiles_too():
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    for kind in ("JPEG", "AVIF", "HEIF"):
        pixels = decoded(image, kind, icc_profile=screen(SWAPPED, None), quality=95)
        assert np.abs(pixels - (50, 100, 200)).max() <= 6, kind


def editions_of_srgb() -> list[bytes]:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [made, screen(SRGB, None)]


@pytest.mark.parametrize("srgb", editions_of_srgb(), ids=["lcms", "table"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_profiles_that_are_srgb_change_nothing(srgb, kind):
    image = picture(64, 48)
    assert (decoded(image, kind, icc_profile=srgb) == decoded(image, kind)).all()
    assert to_srgb(srgb, "RGB") is plain


def test_grey_pictures_have_profiles_of_their_own():
    image = picture(40, 30).convert("L")
    wanted = levels((np.asarray(image) / 255) ** 1.0)[..., None]
    assert np.abs(decoded(image, icc_profile=grey(1.0)) - wanted).max() <= 2.5
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    assert np.abs(decoded(deep, icc_profile=grey(1.0)) - wanted).max() <= 2.5
    seen = image.copy()
    seen.putalpha(255)
    assert np.abs(decoded(seen, icc_profile=grey(1.0)) - wanted).max() <= 2.5


def test_transparent_pictures_are_converted_before_they_are_laid_on_the_background():
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 255))
    image.paste((200, 100, 50, 0), (0, 0, 8, 4))
    pixels = decoded(image, icc_profile=screen(SWAPPED, None))
    assert (pixels[:4] == 255).all()
    assert np.abs(pixels[4:] - (50, 100, 200)).max() <= 1


def test_a_palette_is_converted():
    image = Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)
    pixels = decoded(image, icc_profile=screen(SWAPPED, None))
    assert np.abs(pixels - (50, 100, 200)).max() <= 1


def test_ink_is_converted_by_the_profile_of_the_press():
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    middle = levels(np.array(((50 + 16) / 116) ** 3))  # L* = 50
    for kind in ("TIFF", "JPEG"):
        assert np.abs(decoded(ink, kind, icc_profile=press()) - middle).max() <= 3, kind
        # Without one there is only Pillow's subtraction.
        assert np.abs(decoded(ink, kind) - (0, 255, 255)).max() <= 3, kind


def test_padding_is_not_part_of_the_picture():
    image = Image.new("RGB", (8, 16), (200, 100, 50))
    data = encoded(image, "PNG", icc_profile=screen(SWAPPED, None))
    preprocess = Preprocess((16, 16), (0,) * 3, (1,) * 3, "bicubic", "longest", fill_color=127)
    pixels = decode_image(data, preprocess, 10**6).pixels.astype(int)
    assert (pixels[:, :4] == 127).all()
    assert np.abs(pixels[:, 4:12] - (50, 100, 200)).max() <= 1


WRONG = {
    "random": bytes(range(256)) * 4,
    "short": b"\0" * 20,
    "cut": screen(SWAPPED, None)[:200],
    "of grey": grey(2.2),
    "of ink": press(),
    "a link": screen(SWAPPED, None).replace(b"mntr", b"link"),
    "too large": screen(SWAPPED, None) + bytes(colour.MAX_PROFILE_BYTES),
}


@pytest.mark.parametrize("broken", WRONG.values(), ids=WRONG)
def test_profiles_that_cannot_be_used_are_ignored(broken):
    image = picture(20, 20)
    assert (decoded(image, "WEBP", icc_profile=broken, lossless=True) == np.asarray(image)).all()
    ink = image.convert("CMYK")
    other = WRONG["random"] if broken == press() else broken
    assert (decoded(ink, "TIFF", icc_profile=other) == np.asarray(ink.convert("RGB"))).all()


def test_flipped_bytes_in_a_profile_raise_nothing():
    random = np.random.default_rng(5)
    image = picture(8, 8)
    for good, mode in ((screen(DISPLAY_P3, 2.2), "RGB"), (press(), "CMYK"), (grey(1.8), "L")):
        for _ in range(60):
            damaged = bytearray(good)
            for place in random.integers(0, len(good), 4):
                damaged[place] = int(random.integers(0, 256))
            assert to_srgb(bytes(damaged), mode)(image.convert(mode)).mode == "RGB"


def test_only_the_last_profiles_are_remembered():
    for number in range(100):
        to_srgb(screen(SWAPPED, 1.0 + number / 100), "RGB")
    assert len(colour._transforms._known) <= colour._REMEMBERED


def test_many_threads_convert_at_once():
    images = [picture(60, 40, seed).point(lambda level: 32 + level * 3 // 4) for seed in range(8)]
    profiles = [screen(DISPLAY_P3, 1.5 + number / 50) for number in range(40)]
    wanted = [
        np.asarray(to_srgb(profiles[seed], "RGB")(image)) for seed, image in enumerate(images)
    ]
    start = threading.Barrier(8)

    def convert(seed: int) -> None:
        start.wait()
        for turn in range(60):
            to_srgb(profiles[(seed + turn) % 40], "RGB")(images[seed])  # others come and go
            again = to_srgb(profiles[seed], "RGB")(images[seed])
            assert (np.asarray(again) == wanted[seed]).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(convert, range(8)))
