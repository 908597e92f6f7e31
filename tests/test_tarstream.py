"""Tars that are cut, damaged or hostile: what of them is read, and what is said of the rest."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import END, PICTURES, TAR, Members, Stream, header, names, pack, read

from transforms.records import Reason
from transforms.tars import read_samples

MEMBERS: Members = [
    (f"{number}.{kind}", f"{number} {kind} ".encode() * (number * 97))
    for number in range(1, 8)
    for kind in ("jpg", "txt")
]
WHOLE = pack(MEMBERS, end=b"\0" * 10240)


def ends() -> Iterator[tuple[int, int]]:
    """Where each member's data ends, and the block it is in."""
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        for info in tar:
            end = info.offset_data + info.size
            yield end, end + -end % 512


def check_cut(cut: int) -> None:
    samples = read(WHOLE[:cut])
    data_ends = [end for end, _ in ends()]
    last = list(ends())[-1][1]
    if cut > last:
        assert len(samples) == 7
        assert all(sample.problem is None for sample in samples)
        return
    *whole, broken = samples
    assert broken.ref.uri == TAR
    assert broken.problem.reason is Reason.CORRUPT_ARCHIVE
    assert not broken.ref.fetched
    # A picture whose caption is not reached yet is readable; one whose caption is cut is not whole.
    readable = sum(end <= cut for end in data_ends)
    expected = (readable + 1) // 2
    if readable % 2 and f"in member '{MEMBERS[readable][0]}'" in str(broken.problem):
        expected -= 1
    assert [sample.ref.id for sample in whole] == [str(n) for n in range(1, expected + 1)]
    assert all(sample.problem is None for sample in whole)
    if cut >= 512:
        assert f"at byte {cut}, after" in str(broken.problem)


@pytest.mark.parametrize("tenth", range(10))
def test_a_tar_cut_anywhere_gives_what_is_whole(tenth):
    check_cut(len(WHOLE) * tenth // 10)


def test_a_tar_cut_at_any_border():
    for end, block in ends():
        for cut in {end - 1, end, end + 1, block - 1, block, block + 1, block + 511, block + 512}:
            check_cut(cut)
    for cut in range(0, len(WHOLE), 512):
        check_cut(cut)


def test_the_cut_is_told_of_with_its_place():
    *_, broken = read(WHOLE[: list(ends())[2][0] - 5])
    assert str(broken.problem) == (
        "breaks off at byte 4743, after 2 members, in member '2.jpg': the file ends here"
    )
    *_, broken = read(WHOLE[: list(ends())[-1][1]])
    assert "after 14 members: the file ends here, without a tar's end mark" in str(broken.problem)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04" * 500, b"<html>not found</html>" * 100, os.urandom(2000)]
)
def test_what_is_no_tar(content):
    (sample,) = read(content, ("owner",))
    assert sample.ref.uri == TAR
    assert sample.ref.carried == (None,)
    assert sample.problem.reason is Reason.CORRUPT_ARCHIVE
    assert str(sample.problem).startswith("is not a tar: ")


def test_an_empty_tar_is_whole():
    assert read(END) == []
    assert read(b"\0" * 10240) == []


def test_garbage_between_members():
    first, second = pack([("a.jpg", b"1")], end=b""), pack([("b.jpg", b"2")])
    whole, broken = read(first + b"garbage!" * 64 + second)
    assert whole.data == b"1"
    assert "breaks off at byte 1024, after 1 members: no header" in str(broken.problem)


def test_joined_tars_are_all_read():
    joined = b"".join(pack([(f"{n}.jpg", b"x" * n)], end=b"\0" * 10240) for n in range(3))
    assert names(read(joined)) == ["0.jpg", "1.jpg", "2.jpg"]


def test_gzipped_tars():
    zipped = gzip.compress(WHOLE, mtime=0)
    assert read(zipped) == read(WHOLE)
    two = gzip.compress(WHOLE[:3000]) + gzip.compress(WHOLE[3000:])
    assert read(two) == read(WHOLE)
    noise = [(f"{n}.jpg", os.urandom(20_000)) for n in range(8)]
    zipped = gzip.compress(pack(noise))
    for tenth in range(1, 10):
        *whole, broken = read(zipped[: len(zipped) * tenth // 10])
        assert [(s.ref.id, s.data) for s in whole] == [
            (name[:-4], data) for name, data in noise[: len(whole)]
        ]
        assert abs(len(whole) - 8 * tenth / 10) < 2
        assert broken.problem.reason is Reason.CORRUPT_ARCHIVE
        assert "gzip" in str(broken.problem)
    flipped = bytearray(zipped)
    flipped[len(zipped) // 2] ^= 0xFF
    *whole, broken = read(bytes(flipped))
    assert len(whole) <= 8
    assert "its gzip is cut or damaged" in str(broken.problem)


def test_a_stores_error_is_not_the_tars():
    class Failing(Stream):
        def read(self, size: int = -1) -> bytes:
            if self._file.tell() > 4000:
                raise ConnectionResetError("reset")
            return super().read(size)

    for content in (WHOLE, gzip.compress(os.urandom(9000))):
        with pytest.raises(ConnectionResetError):
            list(read_samples(Failing(content), TAR, "", (), 10**6, PICTURES))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_refused_unread(kind):
    content = pack([("a.jpg", b"1")], end=b"") + header(kind, 10**10) + b"x" * 5000
    whole, broken = read(content)
    assert whole.data == b"1"
    assert "extended header of 10000000000 bytes" in str(broken.problem)


@pytest.mark.parametrize(
    "payload",
    [b"1" * 1_000_000, b"2 " * 500_000, b"1 hdrcharset" * 80_000, b"9 a=b\n", b"0 a=b\n",
     b"-5 a=b\n", b"12 size=-99\n", b"12 size=9e9\n", b"99999999999999999999 a=b\n"],
)  # fmt: skip
def test_a_hostile_header_costs_no_time(payload):
    padded = payload + b"\0" * (-len(payload) % 512)
    content = header(tarfile.XHDTYPE, len(payload)) + padded + pack([("a.jpg", b"1")])
    begun = time.perf_counter()
    (broken,) = read(content)
    assert time.perf_counter() - begun < 1
    assert "extended header" in str(broken.problem)


def test_a_chain_of_headers_takes_no_memory_and_no_stack():
    one = header(tarfile.XHDTYPE, 512) + (b"512 comment=" + b"x" * 499 + b"\n")
    (sample,) = read(one * 5000 + pack([("a.jpg", b"1")]))
    assert sample.data == b"1"


def test_negative_and_absurd_sizes():
    info = tarfile.TarInfo("a.jpg")
    info.size = -1024
    (broken,) = read(pack([("b.jpg", b"1")], end=b"") + info.tobuf(tarfile.GNU_FORMAT) + END)[1:]
    assert "-1024 bytes" in str(broken.problem)
    info.size = 2**80
    (broken,) = read(info.tobuf(tarfile.GNU_FORMAT) + END)
    assert "in member 'a.jpg'" in str(broken.problem)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_done_to_a_tar_ends_as_samples(data):
    kind = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    long = "n" * 150
    tar = pack([("a.jpg", b"1" * 600), ("a.json", b'{"caption": "c"}'), (f"{long}.jpg", b"2"),
                ("é.txt", b"3")], kind)  # fmt: skip
    if data.draw(st.booleans()):
        tar = gzip.compress(tar)
    content = bytearray(tar)
    for _ in range(data.draw(st.integers(1, 4))):
        what = data.draw(st.sampled_from(["set", "cut", "insert", "repeat", "checksum"]))
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        if what == "set":
            part = data.draw(st.binary(min_size=1, max_size=12))
            content[at : at + len(part)] = part
        elif what == "cut":
            del content[at:]
        elif what == "insert":
            content[at:at] = data.draw(st.binary(max_size=600))
        elif what == "repeat":
            content[at:at] = content[at : at + 512]
        else:
            # A change that its checksum does not betray.
            start = at - at % 512
            block = content[start : start + 512]
            if len(block) == 512:
                field = data.draw(st.sampled_from([(0, 100), (124, 136), (156, 157), (345, 500)]))
                where = data.draw(st.integers(field[0], field[1] - 1))
                block[where] = data.draw(st.integers(0, 255))
                block[148:156] = b" " * 8
                block[148:156] = b"%06o\0 " % sum(block)
                content[start : start + 512] = block
    samples = read(bytes(content), ("owner",), max_bytes=5000)
    for number, sample in enumerate(samples):
        "".join([sample.ref.uri, sample.ref.id or "", sample.ref.text or ""]).encode()
        assert len(sample.ref.carried) == 1
        if sample.problem and sample.problem.reason is Reason.CORRUPT_ARCHIVE:
            assert number == len(samples) - 1
            assert sample.ref.uri == TAR
        if sample.data is not None:
            assert len(sample.data) == sample.ref.size
