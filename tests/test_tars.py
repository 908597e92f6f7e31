from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile

import pytest
from packing import END, PICTURES, TAR, Stream, header, names, pack, read

from transforms.records import Reason
from transforms.tars import read_samples


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
