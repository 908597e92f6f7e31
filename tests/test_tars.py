from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms.records import Reason
from transforms.tars import TarSample, carried_text, read_samples

PICTURES = frozenset({".jpg", ".png"})
TAR = "gs://bucket/a.tar"
END = b"\0" * 1024

Members = list[tuple[str, bytes]]


def pack(members: Members, kind: int = tarfile.PAX_FORMAT, end: bytes = END) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        size = tar.offset
    return buffer.getvalue()[:size] + end


class Stream:
    """What a store gives: it can be read, and nothing else."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 3000))


def read(content: bytes, carry: tuple[str, ...] = (), max_bytes: int = 10**6) -> list[TarSample]:
    return list(read_samples(Stream(content), TAR, "v1", carry, max_bytes, PICTURES))


def names(samples: list[TarSample]) -> list[str]:
    return [sample.ref.uri.removeprefix(f"{TAR}#") for sample in samples]


def test_members_are_matched_by_key():
    samples = read(
        pack(
            [
                ("a/1.cls", b"7"), ("a/1.jpg", b"one"), ("a/1.txt", b"a cat"),
                ("a/2.PNG", b"two"), ("a/2.json", b'{"caption": "a dog", "owner": {"x": 1}}'),
                ("a/3.txt", b"only text"), ("b/3.jpg", b"three"), ("b/4.cls", b"4"),
                ("b/5.json", b'{"text": "said", "owner": 5}'), ("b/6.json", b'{"owner": 5}'),
            ]
        ),
        carry=("owner", "nowhere"),
    )  # fmt: skip
    assert names(samples) == ["a/1.jpg", "a/2.PNG", "a/3.txt", "b/3.jpg", "b/5.json"]
    one, two, text, three, said = samples
    assert (one.data, one.caption, one.ref.text) == (b"one", b"a cat", None)
    assert (one.ref.id, one.ref.version, one.ref.size) == ("a/1", "v1", 3)
    assert one.ref.fetched
    assert one.ref.carried == (None, None)
    assert (two.data, two.caption, two.ref.text) == (b"two", None, "a dog")
    assert two.ref.carried == ('{"x": 1}', None)
    assert (text.data, text.caption, text.ref.fetched) == (None, b"only text", False)
    assert (three.caption, three.ref.text) == (None, None)
    assert (said.data, said.caption, said.ref.text) == (None, None, "said")
    assert (said.ref.fetched, said.ref.carried) == (False, ("5", None))
    assert all(sample.problem is None for sample in samples)


def test_several_pictures_of_a_key_are_items_each():
    samples = read(pack([("a.left.jpg", b"l"), ("a.right.jpg", b"r"), ("a.txt", b"both")]))
    assert [(s.ref.id, s.data, s.caption) for s in samples] == [
        ("a", b"l", b"both"), ("a", b"r", b"both"),
    ]  # fmt: skip


def test_dots_in_names_mix_no_captions_up():
    samples = read(
        pack([("at 10.30.jpg", b"1"), ("at 10.30.txt", b"first"), ("at 10.31.jpg", b"2")])
    )
    assert [(s.data, s.caption) for s in samples] == [(b"1", b"first"), (b"2", None)]
    (one,) = read(pack([("a.jpg", b"1"), ("a.en.txt", b"english")]))
    assert one.caption == b"english"


def test_thousands_of_members_of_one_key_do_not_wait_for_each_other():
    content = pack([(f"frame.{n:05d}.jpg", b"x" * 1000) for n in range(5000)])
    stream = Stream(content)
    first = next(read_samples(stream, TAR, "", (), 10**6, PICTURES))
    assert first.ref.uri == f"{TAR}#frame.00000.jpg"
    assert stream._file.tell() < len(content) / 5
    assert len(read(content)) == 5000
    big = pack([(f"frame.{n}.jpg", b"x" * 90_000) for n in range(50)])
    stream = Stream(big)
    next(read_samples(stream, TAR, "", (), 100_000, PICTURES))
    assert stream._file.tell() < 700_000


def test_blank_captions_are_none_and_the_json_speaks():
    (one,) = read(pack([("a.jpg", b"1"), ("a.txt", b" \n"), ("a.json", b'{"text": "said"}')]))
    assert (one.caption, one.ref.text) == (None, "said")
    (empty,) = read(pack([("a.txt", b"")]))
    assert (empty.caption, empty.ref.fetched) == (b"", False)


def test_broken_json_is_a_row_of_its_own():
    for content in (b'{"caption": ', b"\xff\xfe\xff", b"[" * 100_000, b"1" * 10_000):
        samples = read(pack([("a.jpg", b"1"), ("a.json", content), ("b.jpg", b"2")]), ("owner",))
        assert names(samples) == ["a.jpg", "a.json", "b.jpg"]
        assert samples[1].problem.reason is Reason.BAD_ROW
        assert samples[0].data == b"1"
    assert names(read(pack([("a.jpg", b"1"), ("a.json", b"[1, 2]")]), ("owner",))) == ["a.jpg"]
    (one,) = read(
        pack([("a.jpg", b"1"), ("a.json", b'{"text": "\\ud800", "o": "\\udfff"}')]), ("o",)
    )
    assert (one.ref.text, one.ref.carried) == ("\\ud800", ("\\udfff",))


def test_nesting_of_any_depth():
    for depth in range(900, 1000):
        value = b"[" * depth + b"]" * depth
        one, *_ = read(pack([("a.jpg", b"1"), ("a.json", b'{"x": %s}' % value)]), ("x",))
        assert one.data == b"1"


def test_what_is_too_large_is_not_read():
    samples = read(
        pack([("a.jpg", b"x" * 501), ("a.txt", b"small"), ("b.txt", b"y" * 501),
              ("c.jpg", b"z" * 500), ("c.json", b" " * 600), ("d.npy", b"n" * 9000)]),
        max_bytes=500,
    )  # fmt: skip
    assert names(samples) == ["a.jpg", "b.txt", "c.jpg", "c.json"]
    reasons = [sample.problem and sample.problem.reason for sample in samples]
    assert reasons == [Reason.TOO_MANY_BYTES, Reason.TOO_MANY_BYTES, None, Reason.TOO_MANY_BYTES]
    assert (samples[0].data, samples[0].caption) == (None, b"small")
    assert samples[0].ref.size == 501


def test_links_devices_and_hidden_files(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("dir.jpg", tarfile.DIRTYPE), ("pipe.jpg", tarfile.FIFOTYPE),
            ("dev.jpg", tarfile.CHRTYPE), ("sym.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ["._a.jpg", "x/.jpg", "README", "a.jpg"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    samples = read(buffer.getvalue())
    assert names(samples) == ["sym.jpg", "hard.jpg", "a.jpg"]
    assert "a link to '/etc/passwd'" in str(samples[0].problem)
    assert samples[1].problem.reason is Reason.UNSUPPORTED_URI


NAMES = [
    "../../etc/x.jpg", "/abs/x.jpg", "./x.jpg", "été/猫.jpg", "a b#c%20?.jpg", "x::y.jpg",
    "new\nline.jpg", "d/" * 120 + "long.jpg", "n" * 300 + ".jpg", "a\\b.jpg",
]  # fmt: skip


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_are_only_names(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = read(pack([(name, name.encode()) for name in NAMES], kind))
    assert names(samples) == NAMES
    assert [sample.data for sample in samples] == [name.encode() for name in NAMES]
    assert os.listdir(tmp_path) == []


def test_names_that_are_no_utf8():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        (sample,) = read(pack([(name, b"1")], kind))
        assert sample.ref.uri == f"{TAR}#caf\\xe9.jpg"
        sample.ref.uri.encode()


def test_duplicate_names_are_all_there():
    samples = read(pack([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")]))
    assert [sample.data for sample in samples] == [b"1", b"2", b"3", b"4"]


def test_what_gnu_tar_makes(tmp_path):
    """Formats and sparse files as the real program writes them."""
    with open(tmp_path / "sparse.jpg", "wb") as file:
        for part in range(40):
            file.seek(part * 1_000_000)
            file.write(b"x" * 100)
    (tmp_path / ("l" * 200 + ".jpg")).write_bytes(b"long")
    (tmp_path / "z.jpg").write_bytes(b"last")
    for options in (["-H", "gnu"], ["-H", "pax"], ["-H", "pax", "--sparse-version=0.0"],
                    ["-H", "pax", "--sparse-version=0.1"]):  # fmt: skip
        made = subprocess.run(
            ["tar", "-S", *options, "-cf", "-", "sparse.jpg", "l" * 200 + ".jpg", "z.jpg"],
            cwd=tmp_path, stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
        assert len(made) < 2_000_000
        samples = read(made)
        assert names(samples) == ["sparse.jpg", "l" * 200 + ".jpg", "z.jpg"], options
        assert "sparse" in str(samples[0].problem)
        assert [sample.data for sample in samples[1:]] == [b"long", b"last"]


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


def header(kind: bytes, size: int, name: str = "h") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


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


MEASURE = """
import sys
from transforms.tars import read_samples
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
with open(sys.argv[1], "rb") as file:
    count = sum(1 for _ in read_samples(file, "t", "", (), 10**6, frozenset({".jpg"})))
print(count, peak() - before)
"""


def test_many_members_take_no_more_memory_than_few(tmp_path):
    grown = {}
    for members in (1_000, 100_000):
        path = tmp_path / f"{members}.tar"
        with open(path, "wb") as file:
            for number in range(members):
                file.write(header(tarfile.REGTYPE, 100, f"{number}.jpg") + b"x" * 512)
            file.write(END)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
        )
        count, grown[members] = map(int, done.stdout.split())
        assert count == members
    assert grown[100_000] < grown[1_000] + 2_000  # kB


def test_values_as_tables_carry_them():
    values = [None, "x", True, False, 5, 1.5, {"a": ["é"]}, [1, None]]
    assert [carried_text(value) for value in values] == [
        None, "x", "true", "false", "5", "1.5", '{"a": ["é"]}', "[1, null]",
    ]  # fmt: skip
