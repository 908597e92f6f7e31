"""JPEGs that come encoded, with torchvision's decoder of the CPU in the place of the GPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from broken import corpus
from checkpoints import make_checkpoint
from conftest import Job, encoded, picture
from decoded import SQUARE
from test_colour import SWAPPED, screen
from test_fastjpeg import smooth, with_orientation

from transforms import devicedecoding
from transforms.decoding import ImageDecoder
from transforms.devicedecoding import decode_encoded
from transforms.items import ItemReader
from transforms.model import check_decode
from transforms.modelstore import ModelError
from transforms.reading import ReadMedia, _ReadBatches
from transforms.records import Batch, MediaRef, ModelSpec, ReadLimits, Shard

GPU = ImageDecoder(SQUARE, 10**7, mode="gpu")
FAST = replace(GPU, mode="fast")
EXACT = replace(GPU, mode="exact")


def read(files: dict[str, bytes], folder: Path) -> Batch:
    """The one batch that the reading stage makes of these files, in the mode gpu."""
    refs = []
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        refs.append(MediaRef(str(path), "1", len(data)))
    reader = _ReadBatches(ReadMedia(GPU, ReadLimits(4, 10, 10**7), len(refs), len(refs)))
    reader.setup()
    (windowed,) = [*reader.process(Shard("s", tuple(refs)), 0, None), *reader.finish_bundle()]
    reader.teardown()
    return windowed.value


def test_plain_jpegs_come_encoded_and_others_as_pixels(tmp_path):
    image = picture(200, 150)
    files = {
        "plain.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "a.png": encoded(image, "PNG"),
        "ink.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "colours.jpg": encoded(image, "JPEG", icc_profile=screen(SWAPPED, None)),
        "rgb.jpg": encoded(image, "JPEG", keep_rgb=True),
        "long.jpg": encoded(picture(2000, 50), "JPEG"),
    }
    batch = read(files, tmp_path)
    names = [item.ref.uri.rpartition("/")[2] for item in batch.media]
    assert [names[row] for row in batch.encoded] == ["plain.jpg", "progressive.jpg", "grey.jpg"]
    assert not batch.failures
    for row, name in enumerate(names):
        wanted = FAST(files[name])
        assert (batch.media[row].width, batch.media[row].height) == wanted[1:]
        if row not in batch.encoded:
            assert (batch.pixels[row] == wanted.pixels).all(), name


def test_what_is_decoded_later_has_the_pixels_of_exact(tmp_path):
    files = {f"{turn}.jpg": encoded(smooth(300, 200, turn), "JPEG", quality=95,
                                    exif=with_orientation(turn)) for turn in range(9)}  # fmt: skip
    batch = read(files, tmp_path)
    assert len(batch.encoded) == len(files)
    done = decode_encoded(batch, GPU, "cpu")
    assert not done.encoded
    assert len(done) == len(files)
    for row, data in enumerate(files.values()):
        wanted = EXACT(data)
        assert (done.media[row].width, done.media[row].height) == wanted[1:]
        apart = np.abs(done.pixels[row].astype(int) - wanted.pixels)
        assert apart.max() <= 3, (row, apart.max())


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_geometry_is_that_of_exact(mode, interpolation, tmp_path):
    preprocess = replace(SQUARE, size=(40, 24), resize_mode=mode, interpolation=interpolation)
    data = encoded(smooth(333, 250), "JPEG", quality=95, exif=with_orientation(6))
    batch = replace(
        read({"a.jpg": data}, tmp_path), pixels=np.zeros((1, *preprocess.size, 3), np.uint8)
    )
    done = decode_encoded(batch, replace(GPU, preprocess=preprocess), "cpu")
    wanted = replace(EXACT, preprocess=preprocess)(data)
    assert np.abs(done.pixels[0].astype(int) - wanted.pixels).max() <= 3


def test_hostile_jpegs_fail_as_by_exact(tmp_path):
    files = {file.name: file.data for file in corpus() if file.data[:3] == b"\xff\xd8\xff"}
    batch = decode_encoded(read(files, tmp_path), GPU, "cpu")
    found = {failure.ref.uri: failure.reason for failure in batch.failures}
    items = ItemReader(EXACT, ReadLimits(4, 10, 10**7))
    wanted = {}
    for name in files:
        outcome = items.read(MediaRef(str(tmp_path / name), "1")).outcome
        if hasattr(outcome, "reason"):
            wanted[outcome.ref.uri] = outcome.reason
    assert found == wanted
    assert len(batch.media) + len(batch.failures) == len(files)


def test_what_the_device_refuses_is_for_the_cpu_and_its_text(tmp_path, caplog):
    plain = encoded(picture(200, 150), "JPEG")
    # Its tables are comments now: a decoder finds none.
    data = np.frombuffer(plain.replace(b"\xff\xdb", b"\xff\xfe"), np.uint8)
    batch = read({"good.jpg": plain}, tmp_path)
    good = batch.media[0]
    alone = replace(good, ref=MediaRef("alone.jpg", "1"))
    paired = replace(good, ref=MediaRef("paired.jpg", "1"), text="a bird")
    batch = replace(
        batch,
        media=(alone, good, paired),
        pixels=np.zeros((3, 32, 32, 3), np.uint8),
        encoded={0: data, 1: np.frombuffer(plain, np.uint8), 2: data},
    )
    with caplog.at_level("WARNING", "beamtag"):
        done = decode_encoded(batch, GPU, "cpu")
    assert "goes to the CPU" in caplog.text
    assert [failure.ref.uri for failure in done.failures] == ["alone.jpg"]
    assert [item.ref.uri for item in done.media] == [good.ref.uri, "paired.jpg"]
    kept = done.media[1]
    assert (kept.width, kept.height, kept.text) == (None, None, "a bird")
    assert kept.unused == f"image: {done.failures[0].reason}"
    assert done.pixels.shape == (1, 32, 32, 3)
    assert np.abs(done.pixels[0].astype(int) - EXACT(plain).pixels).max() <= 3


def test_few_pixels_are_decoded_at_once(tmp_path, monkeypatch):
    files = {f"{n}.jpg": encoded(picture(100, 80, n), "JPEG") for n in range(7)}
    batch = read(files, tmp_path)
    parts = []
    whole = devicedecoding._decode

    def counted(some, device):
        parts.append(len(some))
        return whole(some, device)

    monkeypatch.setattr(devicedecoding, "_decode", counted)
    monkeypatch.setattr(devicedecoding, "PIXELS_AT_ONCE", 3 * 8000)
    decode_encoded(batch, GPU, "cpu")
    assert parts == [3, 3, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without one")
def test_without_a_device_it_is_a_usage_error(job: Job, tmp_path):
    with pytest.raises(ModelError, match="no CUDA device"):
        check_decode("gpu", ModelSpec("demo"))
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    model = make_checkpoint(tmp_path / "vit", "vit")
    done = job(input=tmp_path / "a.jpg", model=f"local-dir:{model}", decode="gpu")
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "no CUDA device" in done.err
    assert not (tmp_path / "out").exists()


def test_the_record_tells_how_it_was_decoded(job: Job, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    model = make_checkpoint(tmp_path / "vit", "vit")
    for mode in ("exact", "fast"):
        done = job(
            input=tmp_path / "a.jpg", model=f"local-dir:{model}", decode=mode,
            output=tmp_path / mode,
        )  # fmt: skip
        assert done.record["settings"]["decode"] == mode
