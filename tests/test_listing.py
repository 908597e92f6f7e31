from __future__ import annotations

import os
from pathlib import Path

import apache_beam as beam
import fsspec
import pytest
from apache_beam.testing.util import assert_that

from transforms.listing import (
    GroupIntoShards,
    ListMedia,
    input_exists,
    list_media,
    make_shard,
)
from transforms.records import Input, MediaRef, Selection
from transforms.storage import version_of


@pytest.fixture
def archive(tmp_path) -> Path:
    for name in ["b.jpg", "a.JPEG", "deep/er/c.png", "deep/d.tif", "notes.txt", "[x].jpg", "x.jpg"]:
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "archive"


def names(url: object, root: Path) -> list[str]:
    return [os.path.relpath(ref.uri, root) for ref in list_media(str(url))]


def check_listed(urls: list[str], expected: list[str]) -> None:
    """What the transform makes of several inputs."""
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        inputs = pipeline | beam.Create([tuple(Input(url, "media") for url in urls)])
        uris = inputs | ListMedia(Selection()) | beam.Map(lambda ref: ref.uri)
        assert_that(uris, lambda found: found == expected or pytest.fail(str(found)))


def test_a_folder_gives_its_pictures_at_any_depth_in_order(archive):
    assert names(archive, archive) == [
        "[x].jpg", "a.JPEG", "b.jpg", "x.jpg", "deep/d.tif", "deep/er/c.png",
    ]  # fmt: skip
    assert names(f"{archive}/", archive) == names(archive, archive)


def test_a_glob_gives_what_it_names(archive):
    assert names(archive / "*.txt", archive) == ["notes.txt"]
    assert names(archive / "**" / "*.png", archive) == ["deep/er/c.png"]
    assert names(archive / "*", archive) == ["[x].jpg", "a.JPEG", "b.jpg", "notes.txt", "x.jpg"]


def test_a_name_that_exists_is_literal(archive):
    assert names(archive / "[x].jpg", archive) == ["[x].jpg"]
    assert names(archive / "notes.txt", archive) == ["notes.txt"]


def test_uris_versions_and_sizes(archive):
    (ref,) = list_media(str(archive / "b.jpg"))
    assert ref.uri == str(archive / "b.jpg")
    assert ref.size == 5
    os.utime(archive / "b.jpg", (1, 1))
    (touched,) = list_media(str(archive / "b.jpg"))
    assert touched.version != ref.version
    assert list_media(str(archive / "b.jpg")).__next__() == touched


def test_links_to_files_are_the_files(archive, tmp_path):
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "link.jpg").symlink_to(archive / "b.jpg")
    (farm / "broken.jpg").symlink_to(archive / "gone.jpg")
    (farm / "folder.jpg").symlink_to(archive)
    (farm / "loop").symlink_to(farm)
    assert names(farm, farm) == names(farm / "*.jpg", farm) == ["broken.jpg", "link.jpg"]
    linked = list(list_media(str(farm)))[1]
    (target,) = list_media(str(archive / "b.jpg"))
    assert (linked.version, linked.size) == (target.version, target.size)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path, tmp_path) == names(tmp_path / "*", tmp_path) == []


def test_inputs_that_overlap_give_each_object_once(archive):
    whole = [ref.uri for ref in list_media(str(archive))]
    inputs = [str(archive), str(archive / "*.jpg"), str(archive), str(archive / "notes.txt")]
    check_listed(inputs, [*whole, str(archive / "notes.txt")])


def test_uris_elsewhere_say_where():
    fsspec.filesystem("memory").pipe_file("/shelf/a.jpg", b"12")
    assert [ref.uri for ref in list_media("memory://shelf")] == ["memory:///shelf/a.jpg"]


def test_versions_are_what_the_store_says():
    assert version_of({"generation": "17", "etag": "x", "size": 1}) == "17"
    assert version_of({"ETag": '"abc"', "size": 1}) == "abc"
    assert version_of({"mtime": 1.5, "size": 3}) == "1.5-3"


def test_a_name_that_is_not_utf8_is_still_a_row(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (ref,) = list_media(str(tmp_path))
    assert ref.uri == f"{tmp_path}/caf\\xe9.jpg"


def test_input_exists(archive):
    assert input_exists(str(archive))
    assert input_exists(str(archive / "b.jpg"))
    assert input_exists(str(archive / "*.nothing"))
    assert not input_exists(str(archive / "missing"))
    assert not input_exists(str(archive / "missing" / "*.jpg"))


REFS = [MediaRef(f"u{number}", "v", 1) for number in range(10)]


def test_shards_are_named_by_their_content():
    assert make_shard(REFS) == make_shard(list(REFS))
    renamed = [MediaRef("other", "v", 1), *REFS[1:]]
    changed = [MediaRef("u0", "v2", 1), *REFS[1:]]
    ids = {make_shard(refs).shard_id for refs in (REFS, REFS[1:], renamed, changed)}
    assert len(ids) == 4
    assert all(len(shard_id) == 16 for shard_id in ids)


@pytest.mark.parametrize(("size", "sizes"), [(4, [2, 4, 4]), (10, [10]), (99, [10]), (1, [1] * 10)])
def test_shards_hold_up_to_their_size(size, sizes):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        shards = pipeline | beam.Create([REFS]) | beam.FlatMap(iter) | GroupIntoShards(size)
        assert_that(
            shards,
            lambda found: (
                (
                    sorted(len(shard.refs) for shard in found) == sizes
                    and sorted(ref.uri for shard in found for ref in shard.refs)
                    == sorted(ref.uri for ref in REFS)
                )
                or pytest.fail(str(found))
            ),
        )
