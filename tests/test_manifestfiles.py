"""The formats of manifests: whole, damaged, and larger than memory."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import GS, KINDS, check_problem, parquet, read, told, uris

from transforms.manifestfiles import read_rows
from transforms.manifestrows import ManifestError


def test_txt():
    content = "\ufeffgs://b/a.jpg\r\n\n  \n#a name.jpg\nété/猫 .jpg\ngs://b/x::y,1.jpg".encode()
    assert uris(read(content, "txt")) == [
        "gs://b/a.jpg", "gs://bucket/lists/#a name.jpg", "gs://bucket/lists/été/猫 .jpg",
        "gs://b/x::y,1.jpg",
    ]  # fmt: skip
    assert read(b"", "txt") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_bom_is_no_part_of_a_name(kind):
    content = told(kind, [{"uri": "gs://b/a.jpg"}])
    if kind != "parquet":
        content = b"\xef\xbb\xbf" + content
    assert uris(read(content, kind)) == ["gs://b/a.jpg"]


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_gzip(kind, unpacked):
    """Whatever the name says: a store may have unpacked it."""
    rows = [{"uri": f"gs://b/{number}.jpg"} for number in range(1000)]
    plain = told(kind, rows) if kind != "txt" else "\n".join(r["uri"] for r in rows).encode()
    content = plain if unpacked else gzip.compress(plain)
    assert read(content, kind, url=f"{GS}.{kind}.gz") == read(plain, kind, url=f"{GS}.{kind}.gz")
    assert len(read(content, kind)) == 1000


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"a,b", "has 2 fields, where the header has 3"),
        (b"a,b,c,d", "has 4 fields"),
        (b"a", "has 1 fields"),
        (b",,", "neither"),
        (b"a\0b,,", "NUL"),
        (b"caf\xe9,,", "not in UTF-8"),
        (b"a,,\xff", "not in UTF-8"),
        (b'"a"b,,', "cannot be read"),
        (b'"never closed,,', "cannot be read"),
    ],
)
def test_a_bad_row_of_csv_is_one_problem(row, said):
    content = b"uri,text,owner\n%s\n%s\n%s\n%s\n" % (
        b"gs://b/1,,",
        row,
        b"gs://b/3,,",
        b"gs://b/4,,",
    )
    first, bad, *last = read(content, "csv", ("owner",))
    assert uris([first, *last]) == ["gs://b/1", "gs://b/3", "gs://b/4"]
    check_problem(bad, 2, said)


def test_a_quote_that_nobody_closes_costs_one_row_of_many():
    rows = [f"gs://b/{number},words\n" for number in range(20_000)]
    rows[7] = 'gs://b/7,"open\n'
    refs = read(("uri,text\n" + "".join(rows)).encode(), "csv")
    assert len(refs) == 20_000
    assert [number for number, ref in enumerate(refs) if ref.problem] == [7]


def test_a_quote_that_nobody_closes_before_others():
    refs = read(b'uri,text\ngs://b/1,"open\ngs://b/2,x\ngs://b/3,"words"\ngs://b/4,x\n', "csv")
    assert [(ref.uri.rpartition("/")[2], bool(ref.problem)) for ref in refs] == [
        ("m#1", True), ("2", False), ("3", False), ("4", False),
    ]  # fmt: skip


def test_a_long_text_of_many_lines_is_one_row():
    text = "\n".join(["a line of thirty-two characters."] * 6_000)
    rows = [{"uri": "gs://b/1", "text": text}, {"uri": "gs://b/2", "text": "x"}]
    for kind in ("csv", "tsv"):
        csv.field_size_limit(131_072)  # as it is before anybody sets it
        refs = read(told(kind, rows), kind)
        assert [(ref.uri, ref.text) for ref in refs] == [("gs://b/1", text), ("gs://b/2", "x")]


def test_csv_as_rfc_4180_has_it():
    content = (
        b'"uri", "text"\r\n"gs://b/a,1","he said ""x"",\r\nthen"\r\n\r\ngs://b/2,\r\ngs://b/3,x'
    )
    refs = read(content.replace(b'", "', b'","'), "csv")
    assert [(ref.uri, ref.text) for ref in refs] == [
        ("gs://b/a,1", 'he said "x",\r\nthen'), ("gs://b/2", None), ("gs://b/3", "x"),
    ]  # fmt: skip
    assert uris(read(b"uri , text\rgs://b/1,x\rgs://b/2,y\r", "csv")) == ["gs://b/1", "gs://b/2"]


def test_a_line_without_end_is_one_problem():
    line = b"x" * (9 * 1024 * 1024)
    good = b'{"uri": "gs://b/%d.jpg"}'
    for kind, lines in [
        ("txt", [b"gs://b/1.jpg", line, b"gs://b/3.jpg"]),
        ("jsonl", [good % 1, line, good % 3]),
    ]:
        first, bad, last = read(b"\n".join(lines), kind)
        assert uris([first, last]) == ["gs://b/1.jpg", "gs://b/3.jpg"]
        check_problem(bad, 2, "is longer than")
    many = b",".join([b"x" * 1000] * 9000)
    first, bad, last = read(b"\n".join([b"uri", b"gs://b/1", many, b"gs://b/3"]), "csv")
    assert uris([first, last]) == ["gs://b/1", "gs://b/3"]
    check_problem(bad, 2, "is longer than")


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_a_cut_gzip_gives_its_rows_and_one_problem(kind):
    names = [os.urandom(20).hex() for _ in range(20_000)]
    plain = told(kind, [{"uri": f"gs://b/{name}"} for name in names])
    if kind == "txt":
        plain = "".join(f"gs://b/{name}\n" for name in names).encode()
    whole = gzip.compress(plain)
    for tenth in range(1, 10):
        *refs, broken = read(whole[: len(whole) * tenth // 10], kind)
        assert uris(refs) == [f"gs://b/{name}" for name in names[: len(refs)]]
        assert abs(len(refs) / 20_000 - tenth / 10) < 0.05
        check_problem(broken, len(refs) + 1, f"breaks off after {len(refs)} rows")
    *refs, broken = read(whole[:-1], kind)
    assert len(refs) == 20_000
    check_problem(broken, 20_001, "breaks off")


def test_damage_in_the_middle_of_parquet():
    names = [os.urandom(20).hex() for _ in range(20_000)]
    content = bytearray(parquet({"uri": names}, row_group_size=2000, compression="zstd"))
    middle = len(content) // 2
    content[middle : middle + 5000] = os.urandom(5000)
    *refs, broken = read(bytes(content), "parquet")
    assert uris(refs) == [f"gs://bucket/lists/{name}" for name in names[: len(refs)]]
    assert 4000 < len(refs) < 12_000
    check_problem(broken, len(refs) + 1, "breaks off")


class Failing(io.BytesIO):
    """A store that is gone after some reads."""

    def __init__(self, content: bytes, reads: int) -> None:
        super().__init__(content)
        self.left = reads

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("reset")
        return super().read(size)


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_a_stores_error_is_not_the_manifests(kind):
    names = [os.urandom(20).hex() for _ in range(40_000)]
    content = {
        "txt": "\n".join(names).encode(),
        "parquet": parquet({"uri": names}, row_group_size=2000),
    }.get(kind) or told(kind, [{"uri": name} for name in names])
    reads = 10 if kind == "parquet" else 3
    reading = read_rows(Failing(content, reads), kind, GS, ())
    assert next(reading).problem is None
    with pytest.raises(ConnectionResetError):
        list(reading)


ROW = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b'"', b'""', b"a,b", b'{"uri": "a"}', b"\r", b"\0", b"\xff", b"", b'"a\n', b"{"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["txt", "csv", "tsv", "jsonl"]), st.lists(ROW, max_size=12))
def test_whatever_is_in_a_manifest_nothing_is_lost(kind, rows):
    """Each line that is one, is an item or a problem; none ends the reading."""
    start = {"csv": b"uri,text\n", "tsv": b"uri\ttext\n"}.get(kind, b"")
    good = {"csv": b"gs://b/1,x\n", "tsv": b"gs://b/1\tx\n", "txt": b"gs://b/1\n",
            "jsonl": b'{"uri": "gs://b/1"}\n'}[kind]  # fmt: skip
    content = start + good + b"\n".join(rows) + b"\n" + good
    if content[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff"):
        return
    refs = read(content, kind)
    json.dumps(refs, ensure_ascii=False).encode()
    assert refs[0].uri == "gs://b/1"
    for ref in refs:
        assert ref.problem is None or "\n" not in ref.problem


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_parquet_ends_as_rows_or_one_error(data):
    content = bytearray(
        parquet(
            {"uri": [f"gs://b/{n}" for n in range(300)], "text": ["x"] * 300}, row_group_size=100
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ManifestError):
        read(bytes(content), "parquet")


MEASURE = """
import sys
from transforms.manifestfiles import read_rows
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
kind = sys.argv[2]
with open(sys.argv[1], "rb") as file:
    count = sum(1 for _ in read_rows(file, kind, "gs://b/m", ()))
print(count, peak())
"""


def write(path: Path, kind: str, rows: int) -> None:
    if kind == "parquet":
        values = {
            "uri": [f"gs://b/{n}.jpg" for n in range(rows)],
            "text": [f"word {n}" for n in range(rows)],
        }
        path.write_bytes(parquet(values, row_group_size=rows))
        return
    line = {"txt": "gs://b/{}.jpg\n", "csv": "gs://b/{}.jpg,word {}\n"}.get(kind)
    with gzip.open(path, "wt") if kind == "txt" else path.open("w") as file:
        if kind == "csv":
            file.write("uri,text\n")
        for n in range(rows):
            file.write(
                line.format(n, n) if line else f'{{"uri": "gs://b/{n}.jpg", "text": "word {n}"}}\n'
            )


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_a_million_rows_take_the_memory_of_a_few(kind, tmp_path):
    peaks = {}
    for rows in (100_000, 1_000_000):
        write(tmp_path / "m", kind, rows)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "m"), kind],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        count, peaks[rows] = map(int, done.stdout.split())
        assert count == rows
    assert peaks[1_000_000] < 1.2 * peaks[100_000]
