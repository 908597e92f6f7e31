from __future__ import annotations

import tarfile
import threading
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from conftest import encoded, picture, write_pictures

from transforms.decoding import ImageDecoder
from transforms.fitting import fit
from transforms.listing import list_media, make_shard
from transforms.reading import BATCHES_AHEAD, ReadMedia, _ReadBatches
from transforms.records import MediaRef, Preprocess, ReadLimits, Reason, Shard, Stage

SQUARE = Preprocess(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1))
DECODER = ImageDecoder(SQUARE, max_pixels=10_000_000)


def read(shards: list[Shard], batch_size: int = 4, max_bytes: int = 10**6, decode=DECODER):
    """What a bundle of these shards becomes, and how it was read."""
    reader = _ReadBatches(ReadMedia(decode, ReadLimits(8, 10, max_bytes), batch_size, 100))
    reader.setup()
    reader.start_bundle()
    values = [value for shard in shards for value in reader.process(shard, 0, None)]
    values += reader.finish_bundle()
    reader.teardown()
    return [value.value for value in values]


def refs(folder: Path) -> list[MediaRef]:
    return list(list_media(str(folder)))


def test_rows_belong_to_their_items_in_order(tmp_path):
    shard = make_shard(refs(write_pictures(tmp_path, 10)))
    batches = read([shard])
    assert [(b.position.seq, b.position.last, len(b)) for b in batches] == [
        (0, False, 4), (1, False, 4), (2, True, 2),
    ]  # fmt: skip
    media = [item for b in batches for item in b.media]
    assert [item.ref for item in media] == list(shard.refs)
    pixels = np.concatenate([b.pixels for b in batches])
    for row, item in enumerate(media):
        decoded = DECODER(Path(item.ref.uri).read_bytes())
        assert (pixels[row] == decoded.pixels).all()
        assert (item.width, item.height, item.size) == (64, 48, item.ref.size)


def test_failures_travel_with_their_batch(tmp_path):
    write_pictures(tmp_path, 3)
    (tmp_path / "00001.jpg").write_bytes(b"hello")
    (tmp_path / "big.jpg").write_bytes(encoded(picture()) + bytes(10**6))
    gone = MediaRef(str(tmp_path / "gone.jpg"), "v", 3)
    (batch,) = read([make_shard([*refs(tmp_path), gone])], batch_size=8)
    assert [Path(item.ref.uri).name for item in batch.media] == ["00000.jpg", "00002.jpg"]
    assert len(batch) == len(batch.pixels) == 2
    found = {Path(f.ref.uri).name: (f.stage, f.reason) for f in batch.failures}
    assert found == {
        "00001.jpg": (Stage.DECODE, Reason.NOT_AN_IMAGE),
        "big.jpg": (Stage.READ, Reason.TOO_MANY_BYTES),
        "gone.jpg": (Stage.READ, Reason.NOT_FOUND),
    }
    expected = np.asarray(fit(picture(seed=2), SQUARE)).astype(int)
    assert np.abs(batch.pixels[1].astype(int) - expected).mean() < 10


def test_a_shard_of_nothing_readable_is_still_a_batch():
    (batch,) = read([make_shard([MediaRef("/nowhere/a.jpg", "v")])])
    assert len(batch) == 0
    assert batch.pixels.shape == (0, 16, 16, 3)
    assert len(batch.failures) == 1


class Gate:
    """A decoder that counts how many items are begun."""

    preprocess = SQUARE

    def __init__(self) -> None:
        self.begun = 0
        self._lock = threading.Lock()

    def __call__(self, data: bytes, room):
        with self._lock:
            self.begun += 1
        time.sleep(0.002)
        return DECODER(data, room)


def test_reading_goes_ahead_across_shards_but_not_without_bound(tmp_path):
    items = refs(write_pictures(tmp_path, 40))
    shards = [make_shard(items[start : start + 4]) for start in range(0, 40, 4)]
    gate = Gate()
    reader = _ReadBatches(ReadMedia(gate, ReadLimits(8), 4, 100))
    reader.setup()
    reader.start_bundle()
    ahead = []
    given = 0
    for shard in shards:
        for value in reader.process(shard, 0, None):
            given += 1
            assert value.value.position.shard_id == shards[given - 1].shard_id
            ahead.append(gate.begun - 4 * given)
    rest = list(reader.finish_bundle())
    assert given + len(rest) == 10
    assert len(rest) == BATCHES_AHEAD
    assert max(ahead) <= BATCHES_AHEAD * 4


def test_batches_read_ahead_keep_their_own_window_and_time(tmp_path):
    items = refs(write_pictures(tmp_path, 6))
    shards = [make_shard(items[start : start + 2]) for start in range(0, 6, 2)]
    uris = {shard.shard_id: (number * 10 + 3) for number, shard in enumerate(shards)}

    def when(batch, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        return batch.position.shard_id, float(timestamp), float(window.start)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = (
            pipeline
            | beam.Create(shards)
            | beam.Map(lambda shard: TimestampedValue(shard, uris[shard.shard_id]))
            | beam.WindowInto(FixedWindows(10))
            | ReadMedia(DECODER, ReadLimits(8), 4, 100)
            | beam.Map(when)
        )
        assert_that(
            found,
            lambda actual: (
                sorted(actual) == sorted((shard, at, at - 3) for shard, at in uris.items())
                or pytest.fail(str(actual))
            ),
        )


def test_tars_and_objects_do_not_wait_for_each_other(tmp_path, monkeypatch):
    """Samples that wait for their turn hold their bytes: never what an object before them needs."""
    monkeypatch.setattr("transforms.items.BYTES_AT_ONCE", 2000)
    monkeypatch.setattr("transforms.items.SAMPLE_BYTES_AT_ONCE", 2000)
    objects = make_shard(refs(write_pictures(tmp_path / "objects", 40)))
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as archive:
        for picture_file in sorted((tmp_path / "objects").iterdir()):
            archive.add(picture_file, picture_file.name)
    tars = Shard("tar", (MediaRef(str(tar), "v", tar.stat().st_size),), tar=True)
    batches = read([objects, tars, objects, tars])
    assert sum(len(batch) for batch in batches) == 160
    assert sum(batch.counts.listed for batch in batches) == 80
    ends = [batch.position for batch in batches if batch.position.last]
    of_tar = "tar-e3b0c4-0000"  # The tar, the run (here none), and which part of the tar.
    assert [end.shard_id for end in ends] == [objects.shard_id, of_tar, objects.shard_id, of_tar]
    assert [end.end for end in ends] == [False, True, False, True]
