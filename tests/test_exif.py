"""Which way is up, whatever tells it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import encoded, picture
from decoded import SQUARE, decode, exact
from PIL import Image, ImageOps

from transforms.decoding import FORMATS, decode_image
from transforms.fitting import fit


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


@pytest.mark.parametrize(
    "kind", [kind for kind in FORMATS if kind not in ("GIF", "BMP", "JPEG2000")]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_kind_is_turned_once(kind, orientation):
    image = picture(64, 48)  # of whole blocks, so that it can be turned without loss
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))))
    data = encoded(image, kind, exif=exif.tobytes(), **options)
    decoded = decode_image(data, exact(upright.size), 10**6)
    assert (decoded.width, decoded.height) == upright.size
    # Another way up it would be some sixty levels apart.
    apart = np.abs(decoded.pixels.astype(int) - np.asarray(upright).astype(int)).mean()
    assert apart < 8


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


def test_orientation_in_xmp_alone_is_applied():
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><a tiff:Orientation=\"6\"/></x:xmpmeta>"
    assert decode(encoded(picture(40, 20), "JPEG", xmp=xmp)).width == 20


def test_heic_goes_by_its_own_boxes_and_not_by_exif():
    # ISO/IEC 23008-12: the orientation in EXIF is for information only.
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(64, 48), "HEIF", exif=exif)  # given like this, no box is written
    assert b"irot" not in data
    assert decode(data).width == 64
