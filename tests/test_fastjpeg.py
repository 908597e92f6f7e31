"""`fast` against `exact`: nearly the same pixels, and the same outcome whatever the bytes are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from broken import corpus
from conftest import encoded, picture
from decoded import SQUARE
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from outcomes import Broken
from PIL import Image, ImageFile
from pixels import rgb
from test_colour import SWAPPED, grey, screen

from transforms.decoding import DecodedImage, decode_image
from transforms.fastjpeg import MARGIN, decode_reduced, reduction
from transforms.fitting import fit, fit_pixels
from transforms.records import MediaError, Preprocess

MAX_PIXELS = 10**7


def smooth(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of few slow waves, in which a shift by one pixel shows and a filter does not."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    wanted=st.sampled_from([(32, 32), (31, 31), (24, 40), (64, 64)]),
    resize_mode=st.sampled_from(["shortest", "squash", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    orientation=st.integers(0, 9),
    mode=st.sampled_from(["RGB", "L"]),
    has_profile=st.booleans(),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
)
def test_geometry_and_colours_are_those_of_exact(
    size, wanted, resize_mode, interpolation, orientation, mode, has_profile, subsampling,
    progressive,
):  # fmt: skip
    preprocess = Preprocess(wanted, (0,) * 3, (1,) * 3, interpolation, resize_mode, fill_color=7)
    # Of seven and a half columns, the half one is seen.
    assume(min(size) >= 64 or reduction(size, orientation, preprocess) == 1)
    options = {"quality": 95, "subsampling": subsampling, "progressive": progressive}
    if has_profile:
        options["icc_profile"] = grey(1.4) if mode == "L" else screen(SWAPPED, None)
    data = encoded(smooth(*size, mode=mode), "JPEG", exif=with_orientation(orientation), **options)
    exact = decode_image(data, preprocess, MAX_PIXELS)
    fast = decode_image(data, preprocess, MAX_PIXELS, mode="fast")
    assert (fast.width, fast.height) == (exact.width, exact.height)
    assert fast.pixels.shape == exact.pixels.shape
    assert fast.pixels.flags.c_contiguous
    apart = np.abs(fast.pixels.astype(int) - exact.pixels.astype(int))
    assert apart.mean() < 1.5, apart.mean()
    assert np.percentile(apart, 99) <= 8, np.percentile(apart, 99)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("wanted", [(64, 64), (224, 224), (48, 80)])
def test_whole_pixels_are_fitted_as_by_pillow(mode, interpolation, wanted):
    preprocess = Preprocess(wanted, (0,) * 3, (1,) * 3, interpolation, mode, fill_color=7)
    for seed, size in enumerate([(640, 480), (480, 640), (64, 64), (37, 211), (999, 130), (1, 1)]):
        image = picture(*size, seed)
        ours = fit_pixels(np.array(image), size, 1, preprocess).astype(int)
        apart = np.abs(ours - np.asarray(fit(image, preprocess)))
        assert apart.max() <= 2, size
        assert (apart > 0).mean() < 0.1, size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_by_exact(orientation):
    # Of a square of four colours, each orientation makes another one.
    quarters = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    data = encoded(
        Image.fromarray(quarters.repeat(64, 0).repeat(96, 1)), "JPEG",
        exif=with_orientation(orientation),
    )  # fmt: skip
    exact, fast = (decode_image(data, SQUARE, MAX_PIXELS, mode=mode) for mode in ("exact", "fast"))
    apart = np.abs(fast.pixels[4:-4:8, 4:-4:8].astype(int) - exact.pixels[4:-4:8, 4:-4:8])
    assert apart.max() <= 4
    assert (fast.width, fast.height) == ((128, 192) if orientation >= 5 else (192, 128))


def test_the_reduction_leaves_more_than_the_model_wants():
    for side in range(1, 3000, 7):
        factor = reduction((side * 4 // 3, side), 1, SQUARE)
        assert factor in (1, 2, 4, 8)
        assert factor == 1 or side / factor >= MARGIN * 32
        assert factor == 8 or side / (2 * factor) < MARGIN * 32
    # What is long in the file is wide upright, and the other way round.
    tall = Preprocess((80, 20), (0,) * 3, (1,) * 3)
    assert reduction((1200, 300), 6, tall) == reduction((300, 1200), 1, tall) == 4
    assert reduction((1200, 300), 1, tall) == 1


@pytest.mark.parametrize("size", [(2000, 60), (60, 2000), (1, 20)])
def test_what_is_very_long_has_the_pixels_of_exact(size):
    data = encoded(picture(*size), "JPEG")
    assert reduction(size, 1, SQUARE) == 0
    fast = decode_image(data, SQUARE, MAX_PIXELS, mode="fast")
    assert (fast.pixels == decode_image(data, SQUARE, MAX_PIXELS).pixels).all()


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(640, 480), (333, 250), (9, 17), (1, 1)])
def test_a_reduced_picture_is_the_whole_of_it(factor, size):
    data = encoded(picture(*size), "JPEG", quality=95)
    reduced = decode_reduced(data, "RGB", size, factor)
    assert reduced is not None
    assert reduced.size == (size[0] / factor, size[1] / factor)
    height, width = reduced.pixels.shape[:2]
    assert (width - 1, height - 1) < reduced.size <= (width, height)
    if factor == 1:
        assert (reduced.pixels == rgb(Image.open(io.BytesIO(data)))).all()


def test_what_is_not_plain_is_left_to_pillow():
    image = picture(200, 150)
    data = encoded(image, "JPEG")
    assert decode_reduced(data, "RGB", (200, 150), 2) is not None
    assert decode_reduced(encoded(image.convert("CMYK"), "JPEG"), "CMYK", (200, 150), 2) is None
    assert decode_reduced(data, "RGB", (201, 150), 1) is None
    assert decode_reduced(data[:-2], "RGB", (200, 150), 2) is None


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {}])
def test_plain_pictures_are_not_decoded_twice(options, monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("Pillow was asked")

    data = encoded(picture(300, 200), "JPEG", **options)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refused)
    assert decode_image(data, SQUARE, MAX_PIXELS, mode="fast").pixels.shape == (32, 32, 3)


def outcome(data: bytes, mode: str) -> tuple[object, ...]:
    try:
        decoded: DecodedImage = decode_image(data, SQUARE, MAX_PIXELS, mode=mode)
    except MediaError as error:
        return error.reason, str(error)
    return decoded.width, decoded.height


@pytest.mark.parametrize("file", list(corpus()), ids=lambda file: file.name)
def test_a_hostile_file_has_one_outcome(file: Broken):
    assert outcome(file.data, "fast") == outcome(file.data, "exact")


JPEGS = {
    name: encoded(smooth(120, 90, mode=mode), "JPEG", **options)
    for name, mode, options in [
        ("baseline", "RGB", {}),
        ("progressive", "RGB", {"progressive": True}),
        ("restarts", "RGB", {"restart_marker_rows": 1}),
        ("plain", "RGB", {"subsampling": 0}),
        ("grey", "L", {}),
        ("ink", "CMYK", {}),
        ("exif", "RGB", {"exif": with_orientation(6)}),
        ("profile", "RGB", {"icc_profile": screen(SWAPPED, None)}),
    ]
}
DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=0, max_size=6
)


@pytest.mark.parametrize("name", JPEGS)
@settings(max_examples=150, deadline=None)
@given(damage=DAMAGE, keep=st.one_of(st.just(1.0), st.floats(0.01, 1)), early=st.booleans())
def test_damage_anywhere_has_one_outcome(name, damage, keep, early):
    data = bytearray(JPEGS[name])
    for place, value in damage:
        # Most of what can go wrong is in the first bytes.
        data[int((place**4 if early else place) * len(data))] = value
    damaged = bytes(data[: int(len(data) * keep)])
    assert outcome(damaged, "fast") == outcome(damaged, "exact")
