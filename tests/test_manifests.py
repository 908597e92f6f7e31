from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import apache_beam as beam
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.listing import list_media
from transforms.manifests import (
    ManifestError,
    ReadManifests,
    check_manifest,
    manifest_kind,
    read_rows,
)
from transforms.records import MediaRef

GS = "gs://bucket/lists/m"


def read(content: bytes, kind: str, carry: tuple[str, ...] = (), url: str = GS) -> list[MediaRef]:
    return list(read_rows(io.BytesIO(content), kind, url, carry))


def parquet(columns: dict, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def uris(refs: list[MediaRef]) -> list[str]:
    return [ref.uri for ref in refs]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def told(kind: str, rows: list[dict]) -> bytes:
    """The same rows in each kind of manifest that has columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        return parquet({name: [row.get(name) for row in rows] for name in names})
    text = io.StringIO()
    writer = csv.DictWriter(text, names, delimiter="," if kind == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


KINDS = ["csv", "tsv", "jsonl", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns(kind):
    refs = read(
        told(
            kind,
            [
                {"uri": "gs://b/a.jpg", "version": "7", "asset_id": "x1", "other": "ignored"},
                {"uri": "gs://b/b.jpg", "text": 'a cat, "said"\nhe', "id": "bb"},
                {"uri": "gs://b/c.jpg", "text": "été", "version": "9"},
                {"text": "only words", "id": "t1", "asset_id": "x4"},
                {"text": "猫"},
            ],
        ),
        kind,
        ("asset_id", "id"),
    )
    said = 'a cat, "said"\nhe'
    assert refs == [
        MediaRef("gs://b/a.jpg", "7", carried=("x1", None)),
        MediaRef("gs://b/b.jpg", f"text-{sha(said)[:8]}", None, "bb", said, (None, "bb")),
        MediaRef("gs://b/c.jpg", f"9+text-{sha('été')[:8]}", text="été", carried=(None, None)),
        MediaRef(f"{GS}#t1", f"text-{sha('only words')[:16]}", None, "t1", "only words",
                 ("x4", "t1"), fetched=False),
        MediaRef(f"{GS}#5", f"text-{sha('猫')[:16]}", None, None, "猫", (None, None), False),
    ]  # fmt: skip


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
    ("manifest", "uri", "expected"),
    [
        ("gs://b/l/m.txt", "p/a.jpg", "gs://b/l/p/a.jpg"),
        ("gs://b/l/m.txt", "./a.jpg", "gs://b/l/a.jpg"),
        ("gs://b/l/m.txt", "../p/./a.jpg", "gs://b/p/a.jpg"),
        ("gs://b/l/m.txt", "../../../../a.jpg", "gs://b/a.jpg"),
        ("gs://b/l/m.txt", "a./b..jpg", "gs://b/l/a./b..jpg"),
        ("gs://b/l/m.txt", "a//b.jpg", "gs://b/l/a//b.jpg"),
        ("gs://b/l/m.txt", "s3://c/../a.jpg", "s3://c/../a.jpg"),
        ("gs://b/l/m.txt", "/home/a.jpg", "/home/a.jpg"),
        ("gs://b/m.txt", "a.jpg", "gs://b/a.jpg"),
        ("gs://b/m.txt", "x/y://z.jpg", "gs://b/x/y://z.jpg"),
        ("https://h/l/m.txt?sig=a/b", "p/a.jpg", "https://h/l/p/a.jpg"),
        ("memory://l/m.txt", "a.jpg", "memory://l/a.jpg"),
        ("/home/l/m.txt", "p/a.jpg", "/home/l/p/a.jpg"),
        ("/home/l/m.txt", "../../../a.jpg", "/a.jpg"),
        ("file:///home/l/m.txt", "a.jpg", "/home/l/a.jpg"),
        ("/m.txt", "a.jpg", "/a.jpg"),
        ("/home/l/m.txt", "C:/a.jpg", "/home/l/C:/a.jpg"),
    ],
)
def test_relative_names_are_next_to_the_manifest(manifest, uri, expected):
    for kind in ("txt", "csv"):
        content = f"{uri}\n" if kind == "txt" else f"uri\n{uri}\n"
        assert uris(read(content.encode(), kind, url=manifest)) == [expected]


def test_local_files_have_the_listings_version(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"12345")
    (listed,) = list_media(str(tmp_path / "p" / "a.jpg"))
    url = str(tmp_path / "m.csv")
    content = b"uri,text,version\np/a.jpg,,\np/gone.jpg,,\np/a.jpg,,mine\np/a.jpg,hello,\n"
    ref, gone, given, with_text = read(content, "csv", url=url)
    assert ref == listed
    assert (gone.version, gone.size, gone.problem) == ("", None, None)
    assert given.version == "mine"
    assert with_text.version == f"{listed.version}+text-{sha('hello')[:8]}"
    monkeypatch.chdir(tmp_path)
    assert read(b"p/a.jpg", "txt", url="m.txt") == [listed]
    assert read(f"file://{listed.uri}".encode(), "txt")[0].version == listed.version


def check_problem(ref: MediaRef, row: int, *said: str) -> None:
    assert ref.uri == f"{GS}#{row}"
    assert (ref.version, ref.fetched) == ("", False)
    assert ref.problem
    assert "\n" not in ref.problem
    for part in said:
        assert part in ref.problem
    json.dumps(ref).encode("utf-8")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        (b'["gs://b/a.jpg"]', "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "neither a uri nor a text"),
        (b'{"uri": null, "text": " "}', "neither"),
        (b'{"uri": "  "}', "neither"),
        (b'{"uri": 5}', "uri that is no string"),
        (b'{"uri": ["a"]}', "uri that is no string"),
        (b'{"uri": "a", "text": ["b"]}', "text that is no string"),
        (b'{"uri": "a\\u0000b"}', "NUL"),
        (b'{"uri": "a\\ud800"}', "not in UTF-8"),
        (b'{"uri": "caf\xe9"}', "not in UTF-8"),
        (b'{"text": "\\udc00"}', "not in UTF-8"),
        (b'{"uri": "a", "id": "\\udc00"}', "not in UTF-8"),
        (b'{"uri": "a", "owner": "\xff"}', "not in UTF-8"),
    ],
)
def test_a_bad_row_of_jsonl_is_one_problem(row, said):
    good = b'{"uri": "gs://b/%d.jpg"}'
    first, bad, last = read(b"\n".join([good % 1, row, good % 3]), "jsonl", ("owner",))
    assert uris([first, last]) == ["gs://b/1.jpg", "gs://b/3.jpg"]
    check_problem(bad, 2, said)


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
        (b"a,%s," % (b"x" * 200_000), "field larger than field limit"),
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


def test_nesting_of_any_depth():
    for depth in range(900, 1000):
        value = b"[" * depth + b"]" * depth
        (ref,) = read(b'{"uri": "gs://b/1", "x": %s}' % value, "jsonl", ("x",))
        assert ref.uri == "gs://b/1" or "is not JSON" in (ref.problem or "")


def test_a_quote_that_nobody_closes_costs_one_row_of_many():
    rows = [f"gs://b/{number},words\n" for number in range(20_000)]
    rows[7] = 'gs://b/7,"open\n'
    refs = read(("uri,text\n" + "".join(rows)).encode(), "csv")
    assert len(refs) == 20_000
    assert [number for number, ref in enumerate(refs) if ref.problem] == [7]


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


def test_bad_rows_of_parquet():
    content = parquet(
        {
            "uri": pa.array([b"gs://b/1", b"caf\xe9", None, b"a\0b", b"gs://b/5"], pa.binary()),
            "owner": ["a", "b", "c", "d", "e"],
        }
    )
    first, latin, empty, nul, last = read(content, "parquet", ("owner",))
    assert uris([first, last]) == ["gs://b/1", "gs://b/5"]
    check_problem(latin, 2, "not in UTF-8")
    check_problem(empty, 3, "neither")
    check_problem(nul, 4, "NUL")
    assert [ref.carried for ref in (first, latin, empty)] == [("a",), ("b",), ("c",)]


def test_text_in_parquet_that_is_no_utf8():
    bad = pa.array([b"gs://b/1", b"caf\xe9"], pa.binary()).view(pa.string())
    first, second = read(parquet({"uri": bad}), "parquet")
    assert first.uri == "gs://b/1"
    check_problem(second, 2, "not in UTF-8")


def test_values_that_are_carried():
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
    columns = {
        "whole": pa.array([1, None], pa.int64()),
        "float": pa.array([1.0, 0.1]),
        "float32": pa.array([0.1, None], pa.float32()),
        "bool": [True, False],
        "list": [["é", None], None],
        "struct": [{"a": 1}, {"a": None}],
        "moment": pa.array([moment, None], pa.timestamp("us")),
        "nanos": pa.array([1, None], pa.timestamp("ns")),
        "zoned": pa.array([moment, None], pa.timestamp("ms", "America/New_York")),
        "date": pa.array([datetime.date(2024, 5, 6), None]),
        "decimal": [Decimal("1.50"), None],
        "word": pa.array(["a", "b"]).dictionary_encode(),
        "large": pa.array(["a", None], pa.large_string()),
        "null": [None, None],
        "dot.ted": ["x", "y"],
        "empty": ["", None],
    }
    refs = read(parquet({"uri": ["gs://b/1", "gs://b/2"], **columns}), "parquet", tuple(columns))
    assert dict(zip(columns, refs[0].carried, strict=True)) == {
        "whole": "1", "float": "1", "float32": "0.1", "bool": "true", "list": '["é", null]',
        "struct": '{"a": 1}', "moment": "2024-05-06T07:08:09.123456",
        "nanos": "1970-01-01T00:00:00.000000001", "zoned": "2024-05-06T07:08:09.123Z",
        "date": "2024-05-06", "decimal": "1.50", "word": "a", "large": "a", "null": None,
        "dot.ted": "x", "empty": "",
    }  # fmt: skip
    assert refs[1].carried[:4] == (None, "0.1", None, "false")
    row = b'{"uri": "a", "i": 5, "f": 1.0, "b": false, "n": {"x": ["\xc3\xa9"]}, "s": "", "id": 7}'
    (ref,) = read(row, "jsonl", ("i", "f", "b", "n", "s", "id", "missing"))
    assert ref.carried == ("5", "1.0", "false", '{"x": ["é"]}', "", "7", None)
    assert ref.id == "7"


def test_integers_and_numbers_as_ids_and_versions():
    content = parquet({"uri": ["gs://b/1", None], "text": [None, "t"], "id": pa.array([None, 7]),
                       "version": pa.array([3, None])})  # fmt: skip
    first, second = read(content, "parquet")
    assert (first.id, first.version) == (None, "3")
    assert (second.id, second.uri) == ("7", f"{GS}#7")


@pytest.mark.parametrize(
    ("kind", "content", "carry", "said"),
    [
        ("csv", b"url,a\n", (), "has no column uri and no column text (it has: 'url, a')"),
        ("csv", b"", (), "has no column uri"),
        ("csv", b"uri,asset_id\n", ("asset",), "column asset to carry, did you mean 'asset_id'?"),
        ("csv", b"uri,a\n", ("zzz",), "has no column zzz to carry (it has: 'uri, a')"),
        ("csv", b"uri,uri\n", (), "has two columns uri"),
        ("csv", b'"uri\n', (), "the header of"),
        ("csv", "uri\na".encode("utf-16"), (), "is in UTF-16"),
        ("txt", b"a\n", ("owner",), "has no columns, so none to carry"),
        ("parquet", b"PAR1 nothing", (), "is no Parquet file"),
        ("parquet", parquet({"url": ["a"]}), (), "has no column uri"),
        ("parquet", parquet({"uri": [1]}), (), "the column uri holds int64, not text"),
        ("parquet", parquet({"uri": ["a"]}), ("x",), "has no column x to carry"),
        ("parquet", parquet({"uri": ["a"] * 1000})[:-100], (), "is no Parquet file"),
        ("txt", gzip.compress(os.urandom(1000))[:15], (), "breaks off after 0 rows"),
    ],
)  # fmt: skip
def test_what_the_beginning_shows(kind, content, carry, said, tmp_path):
    path = tmp_path / f"m.{kind}"
    path.write_bytes(content)
    for attempt in (lambda: read(content, kind, carry), lambda: check_manifest(str(path), carry)):
        with pytest.raises(ManifestError) as caught:
            attempt()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_checking(tmp_path):
    def check(name: str, content: bytes | None, said: str | None, carry: tuple[str, ...] = ()):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        if said is None:
            check_manifest(str(path), carry)
            return
        with pytest.raises(ManifestError) as caught:
            check_manifest(str(path), carry)
        assert str(path) in str(caught.value)
        assert said in str(caught.value)

    check("gone.csv", None, "does not exist")
    check("a.xlsx", b"PK", "is no manifest: the name of one ends in .txt")
    check("a.jsonl", b'{"uri": "a"}\n', None)
    check("b.jsonl", b"uri,text\n", "the first row is not JSON")
    check("empty.jsonl", b"", None)
    check("a.csv.gz", gzip.compress(b"uri\na\n"), None)
    check("b.csv.gz", b"uri\na\n", None)
    check("a.csv", b"uri,text\n,\n", None)
    check("a.txt", b"a.jpg\n", None)
    check("a.parquet", parquet({"uri": ["a"], "x": [1]}), None, ("x",))
    check("a.parquet", None, "no column y", ("y",))
    (tmp_path / "folder.csv").mkdir()
    check("folder.csv", None, "cannot read")
    with pytest.raises(ManifestError, match=r"cannot read nosuch://b/a\.csv"):
        check_manifest("nosuch://b/a.csv", ())
    with pytest.raises(ManifestError, match="does not exist"):
        check_manifest("memory://nothing/a.csv", ())


def test_only_the_beginning_is_read_to_check():
    content = b"uri\n" + b"gs://b/1.jpg\n" * 1_000_000
    fsspec.filesystem("memory").pipe_file("/check/m.csv", content)
    file = io.BytesIO(content)
    next(read_rows(file, "csv", GS, ()))
    assert file.tell() < 1_000_000


def test_kinds():
    kinds = {
        "a.txt": "txt", "a.CSV": "csv", "a.tsv": "tsv", "a.jsonl.gz": "jsonl", "a.csv.GZ": "csv",
        "gs://b/x.parquet": "parquet", "https://h/a.csv?sig=1.txt": "csv", "a[1]#?.csv": "csv",
        "a.parquet.gz": None, "a.gz": None, "a.jpg": None, "txt": None, ".txt": None, "": None,
        "x.csv/": None,
    }  # fmt: skip
    assert {name: manifest_kind(name) for name in kinds} == kinds


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
from transforms.manifests import read_rows
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


def test_the_transform(tmp_path):
    folder = tmp_path / "été [1]"
    folder.mkdir()
    (folder / "a#1.csv").write_text("uri,owner\ngs://b/1.jpg,me\nbad\n")
    (folder / "a1.csv").write_text("a decoy")
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"uri,owner\ngs://b/2.jpg,\n"))
    fsspec.filesystem("memory").pipe_file(
        "/lists/m.parquet", parquet({"uri": ["x.jpg"], "owner": ["you"]})
    )
    urls = [f"{folder}/a#1.csv", f"{folder}/b.csv.gz", "memory://lists/m.parquet"]
    with beam.Pipeline("FnApiRunner") as pipeline:
        refs = pipeline | beam.Create(urls) | ReadManifests(("owner",))
        told = refs | beam.Map(lambda ref: (ref.uri, ref.carried, ref.problem is None))
        assert_that(
            told,
            equal_to(
                [
                    ("gs://b/1.jpg", ("me",), True),
                    (f"{folder}/a#1.csv#2", (None,), False),
                    ("gs://b/2.jpg", (None,), True),
                    ("memory://lists/x.jpg", ("you",), True),
                ]
            ),
        )


def test_a_manifest_that_is_gone_fails_the_run(tmp_path):
    pipeline = beam.Pipeline("FnApiRunner")
    pipeline | beam.Create([f"{tmp_path}/gone.csv"]) | ReadManifests()
    with pytest.raises(Exception, match=r"Empty match for pattern .*gone\.csv"):
        pipeline.run()
