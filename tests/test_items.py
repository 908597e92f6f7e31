from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from conftest import encoded, picture
from faulty import faulty_server

from transforms.decoding import ImageDecoder
from transforms.items import ItemReader, Room
from transforms.listing import list_media
from transforms.records import (
    RETRYABLE,
    DecodedMedia,
    Failure,
    MediaError,
    MediaRef,
    Preprocess,
    ReadLimits,
    Reason,
    Stage,
)
from transforms.tars import TarSample

SQUARE = Preprocess(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1))
DECODER = ImageDecoder(SQUARE, max_pixels=10_000_000)
PICTURE = encoded(picture())


def read(source: MediaRef | TarSample, **limits) -> DecodedMedia | Failure:
    item = ItemReader(DECODER, ReadLimits(**{"deadline_s": 5.0, **limits})).read(source)
    has_picture = isinstance(item.outcome, DecodedMedia) and item.outcome.width is not None
    assert (item.pixels is not None) == has_picture
    return item.outcome


def failure(source: MediaRef | TarSample, **limits) -> tuple[Stage, Reason, str]:
    outcome = read(source, **limits)
    assert isinstance(outcome, Failure)
    return outcome.stage, outcome.reason, outcome.message


@pytest.fixture
def shelf(tmp_path) -> Path:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "b.txt").write_bytes(b"a dog\r\nin the grass\r\n")
    (tmp_path / "c.txt").write_bytes(PICTURE)
    (tmp_path / "d.jpg").write_text("a dog in the grass")
    (tmp_path / "e.txt").write_text("  \n")
    german = "# Ein Hund im Gräsermeer, überall Blüten. " * 9
    (tmp_path / "f.md").write_bytes(german.encode("cp1252"))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "a[1].jpg",
        "what?.jpg",
        "star*.jpg",
        "été 猫.jpg",
        "a b#c%20d.jpg",
        "x::y.jpg",
        "quote'\".jpg",
    ],
)
def test_names_are_literal(tmp_path, name):
    (tmp_path / "decoy1.jpg").write_bytes(b"decoy")
    (tmp_path / name).write_bytes(PICTURE)
    ref = next(ref for ref in list_media(str(tmp_path)) if ref.uri.endswith(name))
    assert read(ref).size == len(PICTURE)


def test_content_decides_what_a_thing_is(shelf):
    assert read(MediaRef(f"{shelf}/c.txt", "v")).width == 64
    text = read(MediaRef(f"{shelf}/b.txt", "v"))
    assert (text.text.strip(), text.width, text.size) == ("a dog\nin the grass", None, 21)
    assert failure(MediaRef(f"{shelf}/d.jpg", "v"))[:2] == (Stage.DECODE, Reason.NOT_AN_IMAGE)
    assert failure(MediaRef(f"{shelf}/e.txt", "v"))[:2] == (Stage.DECODE, Reason.EMPTY)
    assert "Gräsermeer" in read(MediaRef(f"{shelf}/f.md", "v")).text


def test_a_listed_size_saves_the_fetch():
    stage, reason, message = failure(MediaRef("memory://no/such/thing", "v", 100), max_bytes=99)
    assert (stage, reason) == (Stage.READ, Reason.TOO_MANY_BYTES)
    assert message == "100 bytes, more than the 99 allowed"


def test_an_unlisted_size_is_checked_before_the_fetch():
    fsspec.filesystem("memory").pipe_file("/big", bytes(100))
    assert failure(MediaRef("memory://big", "v"), max_bytes=99)[1] is Reason.TOO_MANY_BYTES
    # Also where it has grown since it was listed.
    assert failure(MediaRef("memory://big", "v", 7), max_bytes=99)[1] is Reason.TOO_MANY_BYTES


def test_an_object_that_has_grown_is_read_whole(shelf, monkeypatch):
    assert read(MediaRef(f"{shelf}/a.jpg", "v", 10)).size == len(PICTURE)
    monkeypatch.setattr("transforms.items.UNLISTED_BYTES", 100)
    assert read(MediaRef(f"{shelf}/a.jpg", "v")).size == len(PICTURE)


@pytest.mark.parametrize(
    ("uri", "reason", "retryable"),
    [
        ("/nowhere/at/all.jpg", Reason.NOT_FOUND, False),
        ("memory://nowhere.jpg", Reason.NOT_FOUND, False),
        ("/tmp", Reason.UNSUPPORTED_URI, False),
        ("nostore://a.jpg", Reason.UNSUPPORTED_URI, False),
        ("http://127.0.0.1:1/a.jpg", Reason.UNAVAILABLE, True),
        ("http:///a.jpg", Reason.UNSUPPORTED_URI, False),
    ],
)
def test_what_cannot_be_read_has_its_reason(uri, reason, retryable):
    stage, found, message = failure(MediaRef(uri, "v"))
    assert (stage, found) == (Stage.READ, reason), message
    assert (found in RETRYABLE) == retryable
    assert message


def test_a_picture_and_its_text_are_one_item(shelf):
    both = read(MediaRef(f"{shelf}/a.jpg", "v", text="a dog"))
    assert (both.width, both.text, both.unused) == (64, "a dog", None)
    assert both.content_sha256 == read(MediaRef(f"{shelf}/a.jpg", "v")).content_sha256


def test_a_half_that_cannot_be_used_is_named(shelf):
    text = read(MediaRef(f"{shelf}/gone.jpg", "v", text="a dog"))
    assert (text.width, text.text, text.unused) == (None, "a dog", "image: not_found")
    text = read(MediaRef(f"{shelf}/d.jpg", "v", text="a dog"))
    assert text.unused == "image: not_an_image"
    only_picture = read(MediaRef(f"{shelf}/a.jpg", "v", text="x" * 200), max_chars=100)
    assert (only_picture.text, only_picture.unused) == (None, "text: too_much_text")
    sample = TarSample(MediaRef("t.tar#a.jpg", "v", fetched=False), PICTURE, bytes(range(256)))
    assert read(sample).unused == "text: not_text"


def test_both_halves_missing_is_one_failure(shelf):
    ref = MediaRef(f"{shelf}/gone.jpg", "v", text="x" * 200)
    stage, reason, message = failure(ref, max_chars=100)
    assert (stage, reason) == (Stage.READ, Reason.NOT_FOUND)
    assert "its text: 200 characters, more than the 100 allowed" in message


def test_a_row_of_text_alone():
    text = read(MediaRef("m.csv#7", "v", text="a dog", fetched=False))
    assert (text.text, text.width, text.size) == ("a dog", None, 5)
    assert failure(MediaRef("m.csv#8", "", fetched=False, problem="no uri")) == (
        Stage.LIST, Reason.BAD_ROW, "no uri",
    )  # fmt: skip


def test_a_version_that_nobody_told_is_the_one_that_was_read():
    fsspec.filesystem("memory").pipe_file("/v.jpg", PICTURE)
    assert read(MediaRef("memory://v.jpg", "")).ref.version
    assert read(MediaRef("memory://v.jpg", "17")).ref.version == "17"
    paired = read(MediaRef("memory://v.jpg", "text-0011aabb", text="a dog")).ref.version
    assert paired.endswith("+text-0011aabb")
    assert len(paired) > len("+text-0011aabb")


@pytest.mark.parametrize("listed", [True, False])
def test_bytes_in_flight_are_capped(tmp_path, listed, monkeypatch):
    size = 200_000
    monkeypatch.setattr("transforms.items.UNLISTED_BYTES", 10_000)
    for number in range(16):
        (tmp_path / f"{number}.jpg").write_bytes(PICTURE + bytes(size - len(PICTURE)))
    with faulty_server(folder=tmp_path, delay=0.1) as web:
        reader = ItemReader(DECODER, ReadLimits())
        reader._bytes_room = Room(3 * size)
        refs = [
            MediaRef(f"{web.url}/{number}.jpg", "v", size if listed else None)
            for number in range(16)
        ]
        with ThreadPoolExecutor(16) as pool:
            items = list(pool.map(reader.read, refs))
        counts = web.counts()
    assert all(item.outcome.width == 64 for item in items)
    # What is not listed is asked for once more, by then with its size known, when there is room.
    assert counts["objects"] == (16 if listed else 32)
    if listed:
        assert counts["most_at_once"] == 3


def test_a_samples_bytes_give_their_room_back():
    reader = ItemReader(DECODER, ReadLimits())
    reader.samples_room = Room(len(PICTURE))
    for _ in range(3):
        sample = TarSample(MediaRef("t.tar#a.jpg", "v", fetched=False), PICTURE)
        reader.make_room(sample)
        assert reader.read(sample).outcome.width == 64


def most_at_once(limit: int, sizes: list[int]) -> int:
    """The most units that a room of this size held while all of these were taken."""
    room = Room(limit)
    lock = threading.Lock()
    held = most = 0

    def hold(size: int) -> None:
        nonlocal held, most
        with room.take(size):
            with lock:
                held += size
                most = max(most, held)
            time.sleep(0.005)
            with lock:
                held -= size

    with ThreadPoolExecutor(len(sizes)) as pool:
        list(pool.map(hold, sizes))
    return most


def test_what_is_in_memory_is_bounded():
    assert most_at_once(10, [4] * 12) <= 10
    assert most_at_once(100, [4] * 12) > 10  # small ones do not wait for each other
    assert most_at_once(10, [25, 3, 25, 3]) == 25  # larger than all the room: alone, but at all


def test_a_closed_room_wakes_who_waits():
    room = Room(10)
    room.acquire(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(room.acquire, 1)
        room.close()
        with pytest.raises(CancelledError):
            waiting.result(timeout=5)


def test_the_room_is_given_back_when_decoding_fails():
    whole = encoded(picture(200, 150))
    room = Room(200 * 150)
    for _ in range(3):
        with pytest.raises(MediaError):
            DECODER(whole[: len(whole) // 2], room.take)
    assert DECODER(whole, room.take).width == 200
