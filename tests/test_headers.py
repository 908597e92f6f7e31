"""What a file's first bytes, and its container, tell before any pixel of it is decoded."""

from __future__ import annotations

import contextlib
import struct

import pytest
from conftest import encoded, picture
from decoded import decode, reason_of
from pieces import claims, grey_tiff, png
from PIL import Image

from transforms import decoding
from transforms.decoding import FORMATS, looks_like_image
from transforms.headers import check_header
from transforms.isofiles import coded_size
from transforms.records import MediaError, Reason


@pytest.mark.parametrize(("bits", "process"), [(12, 0xC0), (12, 0xC1), (16, 0xC3), (2, 0xC3)])
def test_jpegs_of_other_precisions_are_refused_by_their_name(bits, process):
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 1], jpeg[frame + 4] = process, bits
    with pytest.raises(MediaError, match=f"^{bits}-bit JPEG") as caught:
        decode(bytes(jpeg))
    assert caught.value.reason is Reason.UNSUPPORTED_IMAGE


@pytest.mark.parametrize(("mode", "process"), [("RGB", 0xC0), ("L", 0xC0), ("RGB", 0xC2)])
def test_a_jpeg_without_metadata_is_known_from_its_header(mode, process):
    jpeg = encoded(picture(64, 48).convert(mode), "JPEG", progressive=process == 0xC2, comment="?")
    assert bytes([0xFF, process]) in jpeg
    assert check_header("JPEG", jpeg, 10**6).plain == (mode, (64, 48))


@pytest.mark.parametrize(
    "options",
    [
        {"exif": b"Exif\0\0MM\0*\0\0\0\b\0\0\0\0\0\0"},
        {"xmp": b"<x/>"},
        {"icc_profile": b"profile"},
        {"keep_rgb": True},  # by Adobe's segment
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_jpeg_with_metadata_is_for_pillow_to_open(options):
    assert check_header("JPEG", encoded(picture(), "JPEG", **options), 10**6).plain is None


def test_a_jpeg_of_other_colours_or_a_broken_header_is_not_plain():
    jpeg = encoded(picture(), "JPEG")
    frame = jpeg.find(b"\xff\xc0")
    broken = [
        encoded(picture().convert("CMYK"), "JPEG"),
        jpeg.replace(b"\xff\xe0\0\x10", b"\xff\xe0\0\x08"),
        jpeg[:frame] + jpeg[frame : frame + 19] + jpeg[frame:],
        jpeg[: frame + 5] + bytes(2) + jpeg[frame + 7 :],
        jpeg[:-2][: jpeg.find(b"\xff\xda")],
    ]
    assert [check_header("JPEG", data, 10**6).plain for data in broken] == [None] * len(broken)


def test_other_kinds_of_a_format_are_unsupported():
    tiff = grey_tiff(16, 16).replace(
        struct.pack("<HHII", 258, 3, 1, 8), struct.pack("<HHII", 258, 3, 1, 9)
    )
    assert reason_of(tiff) is Reason.UNSUPPORTED_IMAGE


@pytest.mark.parametrize("kind", FORMATS)
def test_what_looks_like_a_picture(kind):
    assert looks_like_image(encoded(picture(), kind))


@pytest.mark.parametrize(
    "data",
    [b"", b"BMW is a maker of cars", b"RIFF and WEBP", "漢字".encode(), b"<svg/>", b"%PDF-1.7"],
)
def test_what_does_not_look_like_a_picture(data):
    assert not looks_like_image(data)


def test_only_the_headers_of_bombs_are_read(monkeypatch):
    def forbidden(*_: object) -> None:
        raise AssertionError("the pixels were read")

    for reader in decoding._READERS.values():
        monkeypatch.setattr(reader, "load", forbidden)
    for kind in FORMATS:
        assert reason_of(encoded(picture(), kind), max_pixels=1000) is Reason.TOO_MANY_PIXELS


def test_a_bomb_is_refused_from_its_header():
    bomb = png(20_000, 20_000, bytes(20_000 * 3 + 1) * 50)
    with pytest.raises(MediaError, match=r"20000 x 20000 pixels, more than the 10000000 allowed"):
        decode(bomb)
    assert reason_of(bomb) is Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("animated", [False, True])
def test_an_avif_is_as_large_as_it_is_coded(animated):
    # libavif would decode all of it, and then scale it down to what the container claims.
    image = Image.new("L", (2000, 1500), 100)
    more = {"save_all": True, "append_images": [image.copy()]} if animated else {}
    data = encoded(image, "AVIF", speed=10, **more)
    assert coded_size(data) == (2000, 1500)
    lying = claims(data, (2000, 1500), (64, 48))
    if animated:  # the track's header says it too, in 16.16 numbers
        whole = struct.pack(">II", 2000 << 16, 1500 << 16)
        lying = lying.replace(whole, struct.pack(">II", 64 << 16, 48 << 16))
    held: list[int] = []

    @contextlib.contextmanager
    def room(pixels: int):
        held.append(pixels)
        yield

    with contextlib.suppress(MediaError):
        decode(lying, room=room)
    assert held in ([9 * 3_000_000], [])
    assert reason_of(lying, max_pixels=1_000_000) is Reason.TOO_MANY_PIXELS


def test_a_walk_over_boxes_comes_to_an_end():
    avif = encoded(picture(), "AVIF")
    assert reason_of(avif + b"\0\0\0\x08free" * 30_000) is Reason.UNSUPPORTED_IMAGE
