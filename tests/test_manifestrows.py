from __future__ import annotations

import datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from rows import GS, KINDS, check_problem, parquet, read, sha, told, uris

from transforms.listing import list_media
from transforms.records import MediaRef


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


def test_nesting_of_any_depth():
    for depth in range(900, 1000):
        value = b"[" * depth + b"]" * depth
        (ref,) = read(b'{"uri": "gs://b/1", "x": %s}' % value, "jsonl", ("x",))
        assert ref.uri == "gs://b/1" or "is not JSON" in (ref.problem or "")


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
