from __future__ import annotations

import gzip
import io
import os

import apache_beam as beam
import fsspec
import pytest
from apache_beam.testing.util import assert_that, equal_to
from rows import GS, parquet, read

from transforms.manifestfiles import read_rows
from transforms.manifestrows import ManifestError
from transforms.manifests import ReadManifests, check_manifest, manifest_kind


def test_kinds():
    kinds = {
        "a.txt": "txt", "a.CSV": "csv", "a.tsv": "tsv", "a.jsonl.gz": "jsonl", "a.csv.GZ": "csv",
        "gs://b/x.parquet": "parquet", "https://h/a.csv?sig=1.txt": "csv", "a[1]#?.csv": "csv",
        "a.parquet.gz": None, "a.gz": None, "a.jpg": None, "txt": None, ".txt": None, "": None,
        "x.csv/": None,
    }  # fmt: skip
    assert {name: manifest_kind(name) for name in kinds} == kinds


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
