"""Listings on local folders, in memory, and on S3 and GCS servers: the same files everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from listings import check_no_thread_is_left, flat_order, names
from servers import both_stores

from transforms import buckets
from transforms.browsing import files_matching, files_under
from transforms.storage import version_of

NAMES = [
    "a[1].jpg", "what?.jpg", "été/猫.jpg", "deep/er/a b.jpg", "deep/b.jpg", "hash#percent%20.jpg",
    "x::y.jpg", "deep.jpg", "deep er/c.jpg", "star*/1.jpg", "back\\slash.jpg", "IMG_1.jpg",
    "IMG_2.png", "plus+and&.jpg", "deep/er/notes.txt", 'quo"te<&>.jpg', "many/many/many/m.jpg",
]  # fmt: skip


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both_stores("shelf"):
        for scheme in ("s3", "gs"):
            filesystem = fsspec.filesystem(scheme)
            for name in NAMES:
                filesystem.pipe_file(f"shelf/in/{name}", name.encode())
            filesystem.pipe_file("shelf/inside.jpg", b"not below")
        # What consoles make for a folder: an object whose key ends with a slash. The emulator of
        # GCS cannot hold one; `Listing` below can.
        for key in ("in/", "in/deep/", "in/empty/"):
            fsspec.filesystem("s3").call_s3("put_object", Bucket="shelf", Key=key, Body=b"")
        yield
    check_no_thread_is_left()


@pytest.fixture(params=["s3", "gs"])
def store(request, stores) -> tuple[Any, str]:
    """The same files on both: a filesystem, and the folder on it."""
    return fsspec.filesystem(request.param), "shelf/in"


@pytest.fixture(params=["local", "memory", "s3", "gs"])
def place(request, tmp_path) -> tuple[Any, str]:
    """The same files everywhere: a filesystem, and the folder on it."""
    if request.param in ("s3", "gs"):
        request.getfixturevalue("stores")
        return fsspec.filesystem(request.param), "shelf/in"
    filesystem = fsspec.filesystem("file" if request.param == "local" else "memory")
    folder = f"{tmp_path}/in"
    for name in NAMES:
        filesystem.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{folder}/{name}", name.encode())
    filesystem.pipe_file(f"{tmp_path}/inside.jpg", b"not below")
    return filesystem, folder


def test_a_folder_gives_everything_below_it_once(place):
    filesystem, folder = place
    found = names(files_under(filesystem, folder), folder)
    assert sorted(found) == sorted(NAMES)
    if "local" in filesystem.protocol:
        assert found[:2] == ["IMG_1.jpg", "IMG_2.png"]
        assert found[-7:] == [
            "deep/b.jpg", "deep/er/a b.jpg", "deep/er/notes.txt", "deep er/c.jpg",
            "many/many/many/m.jpg", "star*/1.jpg", "été/猫.jpg",
        ]  # fmt: skip
    else:
        assert found == flat_order(NAMES)
    assert names(files_under(filesystem, f"{folder}/"), folder) == found


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
def test_pages_of_any_size_give_the_same(store, monkeypatch, page):
    monkeypatch.setattr(buckets, "PAGE", page)
    filesystem, folder = store
    assert names(files_under(filesystem, folder), folder) == flat_order(NAMES)
    assert names(files_under(filesystem, "shelf"), "shelf") == flat_order(
        ["inside.jpg", *(f"in/{name}" for name in NAMES)]
    )
    assert names(files_matching(filesystem, f"{folder}/d*/*"), folder) == [
        "deep er/c.jpg", "deep/b.jpg",
    ]  # fmt: skip


def test_sizes_and_versions_are_those_of_the_object_alone(place):
    filesystem, folder = place
    for entry in files_under(filesystem, folder):
        info = filesystem.info(entry.name)
        assert entry.size == info["size"] == len(entry.name.removeprefix(f"{folder}/").encode())
        # fsspec's memory tells the time in two ways, in listings and alone.
        assert filesystem.protocol == "memory" or entry.version == version_of(info)


def test_a_replaced_file_is_another_version(place):
    filesystem, folder = place
    before = list(files_under(filesystem, folder))
    assert list(files_under(filesystem, folder)) == before
    name = f"{folder}/{NAMES[2]}"
    filesystem.pipe_file(name, b"replaced")
    after = list(files_under(filesystem, folder))
    filesystem.pipe_file(name, NAMES[2].encode())
    assert [entry.name for entry in after] == [entry.name for entry in before]
    assert [new.name for new, old in zip(after, before, strict=True) if new != old] == [name]
    versions = {entry.name: entry.version for entry in (*before, *after)}
    assert versions[name] == after[[entry.name for entry in after].index(name)].version


def test_a_listing_is_of_what_is_there_now_and_nothing_is_kept(place):
    filesystem, folder = place
    filesystem.ls(folder)
    name = f"{folder}/deep/late.jpg"
    # Past the client, whose own writes would empty its cache.
    other = type(filesystem)(skip_instance_cache=True)
    other.pipe_file(name, b"late")
    getattr(filesystem, "dircache", {}).pop(folder, None)
    kept = dict(getattr(filesystem, "dircache", {}))
    for found in (
        files_under(filesystem, folder),
        files_matching(filesystem, f"{folder}/**"),
        files_matching(filesystem, f"{folder}/*/*"),
    ):
        assert name in [entry.name for entry in found]
    assert dict(getattr(filesystem, "dircache", {})) == kept
    other.rm_file(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", [n for n in NAMES if "/" not in n and n.endswith(".jpg")]),
        ("IMG_*", ["IMG_1.jpg", "IMG_2.png"]),
        ("IMG_?.jpg", ["IMG_1.jpg"]),
        ("IMG_[!1].*", ["IMG_2.png"]),
        ("a[[]1].jpg", ["a[1].jpg"]),
        ("a[1].jpg", []),
        ("what?.jpg", ["what?.jpg"]),
        ("deep*", ["deep.jpg"]),
        ("*/*.jpg", ["deep er/c.jpg", "deep/b.jpg", "star*/1.jpg", "été/猫.jpg"]),
        ("d*/b.jpg", ["deep/b.jpg"]),
        ("d*/er/*", ["deep/er/a b.jpg", "deep/er/notes.txt"]),
        ("*/er/notes.txt", ["deep/er/notes.txt"]),
        ("*/*/*/*", ["many/many/many/m.jpg"]),
        ("**", NAMES),
        ("**/*", NAMES),
        ("**/*.txt", ["deep/er/notes.txt"]),
        ("**/IMG_1.jpg", ["IMG_1.jpg"]),
        ("deep/**/*.jpg", ["deep/b.jpg", "deep/er/a b.jpg"]),
        ("*/**/*.jpg", [n for n in NAMES if "/" in n and n.endswith(".jpg")]),
        ("d*/**", [n for n in NAMES if n.startswith(("deep/", "deep er/"))]),
        ("d*/**/a*", ["deep/er/a b.jpg"]),
        ("**/er/**", ["deep/er/a b.jpg", "deep/er/notes.txt"]),
        ("[*]/*", []),
        ("star[*]/*", ["star*/1.jpg"]),
        ("*#*%*", ["hash#percent%20.jpg"]),
        ("?é?/*", []),
        ("?t?/?.jpg", ["été/猫.jpg"]),
        ("missing/*", []),
        ("missing/**", []),
        ("*/missing/*.jpg", []),
        ("IMG_1.jpg/*", []),
        ("empty/*", []),
    ],
)
def test_a_glob_gives_what_it_names(place, pattern, expected):
    filesystem, folder = place
    found = names(files_matching(filesystem, f"{folder}/{pattern}"), folder)
    assert found == flat_order(expected)


def test_a_glob_means_what_fsspec_means_by_it(place):
    filesystem, folder = place
    for pattern in ("*", "*/*", "**", "**/*.jpg", "d*/**", "*er/*", "[a-h]*", "*/**/*"):
        expected = filesystem.glob(f"{folder}/{pattern}", detail=True)
        files = [name for name, info in expected.items() if info["type"] == "file"]
        found = [entry.name for entry in files_matching(filesystem, f"{folder}/{pattern}")]
        assert found == flat_order([name for name in files if not name.endswith("/")])


def test_a_pattern_that_is_none(place):
    filesystem, folder = place
    with pytest.raises(ValueError, match=r"\*\*"):
        files_matching(filesystem, f"{folder}/a**b/*.jpg")


def test_what_is_not_there(place):
    filesystem, folder = place
    if "local" in filesystem.protocol or filesystem.protocol == "memory":
        with pytest.raises(FileNotFoundError):
            list(files_under(filesystem, f"{folder}/missing"))
        return
    assert list(files_under(filesystem, f"{folder}/missing")) == []
    for found in (
        lambda: files_under(filesystem, "nobucket-here/x"),
        lambda: files_matching(filesystem, "nobucket-here/x/*.jpg"),
        lambda: files_matching(filesystem, "shel*/in/*.jpg"),
    ):
        with pytest.raises(FileNotFoundError):
            list(found())


def test_what_passes_on_s3(stores, monkeypatch):
    """Errors as s3fs raises them: an OSError, and what the server said as its cause."""
    from botocore.exceptions import ClientError, ConnectTimeoutError
    from s3fs.errors import translate_boto_error

    def said(code: str, status: int) -> Exception:
        response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return translate_boto_error(ClientError(response, "ListObjectsV2"))  # type: ignore[arg-type]

    monkeypatch.setattr(buckets, "FIRST_WAIT_S", 0.001)
    filesystem = fsspec.filesystem("s3")
    real = filesystem.call_s3
    errors: list[Exception] = []

    def call_s3(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(filesystem, "call_s3", call_s3)
    for error in (
        said("SlowDown", 503), said("InternalError", 500), said("RequestTimeout", 400 + 8),
        said("TooManyRequests", 429), TimeoutError(), ConnectionResetError(),
        ConnectTimeoutError(endpoint_url="http://s3"),
    ):  # fmt: skip
        errors[:] = [error, error]
        assert names(files_under(filesystem, "shelf/in"), "shelf/in") == flat_order(NAMES)
        assert not errors
    for error in (said("AccessDenied", 403), said("NoSuchBucket", 404), said("Weird", 400)):
        errors[:] = [error, error]
        with pytest.raises(OSError):  # noqa: PT011
            list(files_under(filesystem, "shelf/in"))
        assert len(errors) == 1


def test_browsing_needs_no_s3fs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs.core", None)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    Path(tmp_path / "a.jpg").write_bytes(b"1")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/only/a.jpg", b"12")
    assert names(files_under(memory, "/only"), "/only") == ["a.jpg"]
