"""The whole job on real object stores: S3 and GCS servers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, Job, encoded, picture
from servers import both_stores

from transforms.fetching import Fetcher
from transforms.listing import list_media

NAMES = [
    "a[1].jpg", "what?.jpg", "été/猫.jpg", "deep/er/a b.jpg", "hash#percent%20.jpg", "x::y.jpg",
]  # fmt: skip


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both_stores("archive", "tables"):
        yield


@pytest.fixture(params=["s3", "gs"])
def archive(request, stores) -> str:
    """Pictures under awkward names, and one object that is none."""
    store = fsspec.filesystem(request.param)
    for number, name in enumerate(NAMES):
        store.pipe_file(f"archive/in/{name}", encoded(picture(seed=number)))
    store.pipe_file("archive/in/broken.jpg", b"<Error>NoSuchKey</Error>")
    return f"{request.param}://archive/in"


def test_names_on_a_store_are_literal(archive):
    refs = {ref.uri: ref for ref in list_media(archive)}
    assert set(refs) == {f"{archive}/{name}" for name in [*NAMES, "broken.jpg"]}
    for number, name in enumerate(NAMES):
        fetched = Fetcher(10, 4).fetch(refs[f"{archive}/{name}"].uri, 10**6)
        assert fetched.data == encoded(picture(seed=number))


def test_a_replaced_object_is_another_version(archive):
    before = {ref.uri: ref for ref in list_media(archive)}
    uri = f"{archive}/{NAMES[0]}"
    fsspec.filesystem(archive.split(":")[0]).pipe_file(uri, encoded(picture(seed=77)))
    after = {ref.uri: ref for ref in list_media(archive)}
    assert after[uri].version != before[uri].version
    assert {uri for uri in after if after[uri] != before[uri]} == {uri}


def test_from_one_store_to_the_other(archive, job: Job, vit: Path, tmp_path, monkeypatch):
    """Pictures, labels and model on one store, the tables on the other."""
    monkeypatch.setenv("BEAMTAG_CACHE", str(tmp_path / "cache"))
    scheme = archive.split(":")[0]
    store = fsspec.filesystem(scheme)
    store.pipe_file("archive/labels.yaml", LABELS.encode())
    for file in vit.iterdir():
        store.pipe_file(f"archive/models/net/{file.name}", file.read_bytes())
    other = "gs" if scheme == "s3" else "s3"
    done = job(
        input=archive,
        labels=f"{scheme}://archive/labels.yaml",
        model=f"{scheme}://archive/models/net",
        output=f"{other}://tables/from-{scheme}",
    )
    assert done.status == 0, done.err
    assert f"embedded  {len(NAMES)}" in done.out
    tables = fsspec.filesystem(other)
    files = tables.find(f"tables/from-{scheme}")
    assert sorted(file.split("/")[2] for file in files) == [
        "embeddings", "failures", "predictions", "runs",
    ]  # fmt: skip
    rows = {}
    for file in files:
        if file.endswith(".parquet"):
            with tables.open(file) as opened:
                rows[file.split("/")[2]] = pq.read_table(opened).to_pylist()
    assert sorted(row["uri"] for row in rows["embeddings"]) == sorted(
        f"{archive}/{name}" for name in NAMES
    )
    assert [row["reason"] for row in rows["failures"]] == ["not_an_image"]
    assert len(rows["predictions"]) == 2 * len(NAMES)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_is_not_on_a_store(stores, job: Job, scheme, tmp_path):
    for flags, message in [
        ({"input": f"{scheme}://archive/missing"}, "does not exist"),
        ({"input": f"{scheme}://nobucket-here/missing"}, "nobucket-here"),
        ({"labels": f"{scheme}://archive/missing.yaml"}, "no label file"),
        ({"model": f"{scheme}://archive/missing"}, "cannot copy the model"),
        ({"output": f"{scheme}://nobucket-here/out"}, "cannot write to"),
    ]:
        done = job(**{"input": tmp_path, **flags})
        assert done.status == 2, done.err
        assert message in done.err
        assert done.err.splitlines()[-1].startswith("beamtag tag: error: ")
