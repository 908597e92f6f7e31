from __future__ import annotations

import os
from pathlib import Path

import apache_beam as beam
import fsspec
import pytest
from apache_beam.testing.util import assert_that, equal_to
from fsspec.implementations.memory import MemoryFileSystem

from transforms.listing import (
    GroupIntoShards,
    ListManifests,
    ListMedia,
    ListTars,
    input_exists,
    list_media,
    make_shard,
)
from transforms.progress import progress
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


def test_inputs_are_listed_one_after_the_other(archive):
    whole = [ref.uri for ref in list_media(str(archive))]
    globbed = [ref.uri for ref in list_media(str(archive / "*.jpg"))]
    notes = str(archive / "notes.txt")
    # That an item is one item however often it is named is SkipDone's.
    check_listed([str(archive), str(archive / "*.jpg"), notes], [*whole, *globbed, notes])


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


def test_a_tar_that_two_inputs_name_is_one_shard(tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    urls = [f"{tmp_path}/a.tar", f"{tmp_path}/*.tar", str(tmp_path)]
    progress.reset()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        inputs = pipeline | beam.Create([tuple(Input(url, "tar") for url in urls)])
        uris = inputs | ListTars() | beam.Map(lambda shard: os.path.basename(shard.refs[0].uri))
        assert_that(uris, equal_to(["a.tar", "b.tar"]))
    assert progress.listed == 0  # What is in them is counted by reading them.


def test_what_rows_carry_comes_along(tmp_path):
    (tmp_path / "m.csv").write_text("uri,owner\ngs://b/1,me\ngs://b/2,you\ngs://b/3,\n")
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        inputs = pipeline | beam.Create([(Input(str(tmp_path / "m.csv"), "manifest"),)])
        owners = inputs | ListManifests(("owner",)) | beam.Map(lambda ref: ref.carried[0])
        assert_that(owners, equal_to(["me", "you", None]))


def test_a_selection_is_of_what_is_found_not_of_what_is_named(archive):
    selection = Selection(include=("*.png",), exclude=("x*",), extensions=(".png",))
    assert [ref.uri for ref in list_media(str(archive / "x.jpg"), "media", selection)] == [
        str(archive / "x.jpg")
    ]
    found = [ref.uri for ref in list_media(str(archive / "**"), "media", selection)]
    assert found == [str(archive / "deep/er/c.png")]


class DownStore(MemoryFileSystem):
    """A store that does not answer."""

    protocol = "down"

    def info(self, path, **kwargs):
        raise ConnectionResetError("reset by peer")


def test_a_store_that_does_not_tell_is_not_one_without_the_object():
    fsspec.register_implementation("down", DownStore, clobber=True)
    for url in ("down://shelf/a.jpg", "down://shelf/*.jpg"):
        with pytest.raises(ConnectionResetError):
            input_exists(url)
        with pytest.raises(ConnectionResetError):
            list(list_media(url))


def test_a_glob_longer_than_names_may_be(archive):
    assert names(archive / f"[{'b' * 300}].jpg", archive) == ["b.jpg"]
    assert input_exists(str(archive / f"[{'b' * 300}].jpg"))


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


def test_shards_that_differ_in_anything_have_names_of_their_own():
    plain = MediaRef("u", "v", 1)
    others = [
        plain._replace(id="i"),
        plain._replace(text="t"),
        plain._replace(carried=("c",)),
        plain._replace(carried=("c", None)),
        plain._replace(fetched=False),
        plain._replace(problem="p"),
    ]
    ids = {make_shard([ref]).shard_id for ref in [plain, *others]}
    assert len(ids | {make_shard([plain], "rows").shard_id}) == 8
    # A size is what the version says, and where a manifest tells the version nobody knows it.
    assert make_shard([plain]).shard_id == make_shard([plain._replace(size=None)]).shard_id


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
