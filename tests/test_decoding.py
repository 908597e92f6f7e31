from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import encoded, picture
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from transforms.decoding import decode_image, fit
from transforms.records import MediaError, Preprocess, Reason

SQUARE = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))


def decode(data: bytes, max_pixels: int = 10_000_000, **changes):
    return decode_image(data, SQUARE, max_pixels, **changes)


def reason_of(data: bytes, **limits) -> Reason:
    with pytest.raises(MediaError) as caught:
        decode(data, **limits)
    return caught.value.reason


def open_clip_pixels(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The picture after open_clip's own preprocess, before it becomes a normalised tensor."""
    transform = image_transform_v2(
        PreprocessCfg(
            size=preprocess.size,
            interpolation=preprocess.interpolation,
            resize_mode=preprocess.resize_mode,
            fill_color=preprocess.fill_color,
        ),
        is_train=False,
    )
    for step in transform.transforms[:-2]:
        image = step(image)
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (48, 80)])
def test_fit_gives_open_clips_pixels(mode, interpolation, size):
    preprocess = Preprocess(size, (0, 0, 0), (1, 1, 1), interpolation, mode, fill_color=7)
    for seed, (width, height) in enumerate(
        [(640, 480), (480, 640), (300, 300), (64, 64), (37, 211), (999, 61), (20, 15), (1, 1)]
    ):
        image = picture(width, height, seed)
        theirs = open_clip_pixels(image, preprocess).astype(int)
        ours = np.asarray(fit(image, preprocess)).astype(int)
        # One call instead of two may round a filter weight the other way: one level, rarely.
        assert np.abs(ours - theirs).max() <= 1, (width, height)
        assert (ours != theirs).mean() < 0.02, (width, height)


@pytest.mark.parametrize("width", [1, 20_000])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_extreme_shapes_take_no_extreme_memory(width, mode):
    # Resized before it is cropped, 1 x 20,000 would be 224 x 4,480,000.
    image = Image.new("RGB", (width, 20_001 - width), (10, 20, 30))
    preprocess = Preprocess((224, 224), (0, 0, 0), (1, 1, 1), "bicubic", mode)
    pixels = np.asarray(fit(image, preprocess))
    assert pixels.shape == (224, 224, 3)
    assert (pixels[111, 111] == (10, 20, 30)).all()


def test_a_one_pixel_picture_is_a_picture():
    decoded = decode(encoded(Image.new("RGB", (1, 1), (200, 100, 50)), "PNG"))
    assert (decoded.width, decoded.height) == (1, 1)
    assert (decoded.pixels == (200, 100, 50)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_kinds_are_told_by_content(kind):
    image = picture(40, 30).quantize(16).convert("RGB")
    decoded = decode(encoded(image, kind))
    assert (decoded.width, decoded.height) == (40, 30)
    expected = np.asarray(fit(image, SQUARE)).astype(int)
    assert np.abs(decoded.pixels.astype(int) - expected).mean() < 12  # lossy kinds included


@pytest.mark.parametrize("mode", ["L", "CMYK", "LAB", "1"])
def test_other_colour_modes_become_rgb(mode):
    image = Image.new("RGB", (10, 10), (255, 255, 255)).convert("L").convert(mode)
    pixels = decode(encoded(image, "TIFF")).pixels
    assert pixels.min() >= 253


def test_transparency_is_laid_on_the_background():
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    data = encoded(image, "PNG")
    assert (decode(data).pixels == 255).all()
    assert (decode(data, background=(0, 128, 0)).pixels == (0, 128, 0)).all()
    palette = image.quantize(4)
    assert (decode(encoded(palette, "PNG", transparency=0)).pixels == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.full((10, 10), 0x8000, dtype=np.uint16))
    assert (decode(encoded(grey, "PNG")).pixels == 0x80).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_an_agreed_range_are_refused(dtype):
    image = Image.fromarray(np.full((10, 10), 40_000, dtype=dtype))
    assert reason_of(encoded(image, "TIFF")) is Reason.UNSUPPORTED_IMAGE


def test_memory_that_runs_out_is_a_reason(monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    data = encoded(picture(), "PNG")
    monkeypatch.setattr(Image.Image, "resize", exhausted)
    assert reason_of(data) is Reason.OUT_OF_MEMORY


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 20, 20))  # the left half is dark
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: the left half is at the top
    decoded = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert (decoded.width, decoded.height) == (20, 40)
    assert decoded.pixels[2].mean() < 50
    assert decoded.pixels[-3].mean() > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows_own(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode(data)
    assert (decoded.width, decoded.height) == expected.size
    assert (decoded.pixels == np.asarray(fit(expected.convert("RGB"), SQUARE))).all()


def test_broken_metadata_beside_it_does_not_hide_the_orientation():
    # Found by fuzzing: a resolution that is text, over which Pillow's exif_transpose fails.
    exif = bytes.fromhex(
        "457869660000 4d4d002a00000008 0003"
        "011b0002000000060000003201120003000000010006000087690004"
        "000000010000003800000000 6d616b65720000019003000200000005000000 4a000000 0032307f300000"
    )
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (20, 40)


def test_no_bytes():
    assert reason_of(b"") is Reason.EMPTY


@pytest.mark.parametrize("data", [b"hello", b"<html>404</html>", b"\0" * 1000, b"%!PS-Adobe-3.0\n"])
def test_not_a_picture(data):
    assert reason_of(data) is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_truncated_pictures_are_corrupt(kind, tenths):
    whole = encoded(picture(200, 150), kind)
    assert reason_of(whole[: len(whole) * tenths // 10]) is Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_signature_and_nothing_behind_it_is_corrupt(kind):
    assert reason_of(encoded(picture(), kind)[:20]) is Reason.CORRUPT_IMAGE


def test_a_bomb_is_refused_from_its_header():
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(20_000 * 3 + 1) * 50, 9)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    with pytest.raises(MediaError, match=r"20000 x 20000 pixels, more than the 10000000 allowed"):
        decode(bomb)
    assert reason_of(bomb) is Reason.TOO_MANY_PIXELS


def test_flipped_bytes_never_raise_anything_else():
    random = np.random.default_rng(1)
    for kind in ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"]:
        whole = np.frombuffer(encoded(picture(120, 90), kind), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            places = random.integers(0, len(whole), 5)
            damaged[places] = random.integers(0, 256, 5)
            try:
                pixels = decode(damaged.tobytes()).pixels
            except MediaError:
                continue
            assert pixels.shape == (32, 32, 3)


def test_pixels_are_those_of_the_plain_loop_on_a_jpeg():
    data = encoded(picture(640, 480), "JPEG")
    preprocess = Preprocess((224, 224), (0, 0, 0), (1, 1, 1))
    ours = decode_image(data, preprocess, 10**8).pixels.astype(int)
    theirs = open_clip_pixels(Image.open(io.BytesIO(data)), preprocess).astype(int)
    assert np.abs(ours - theirs).max() <= 1
