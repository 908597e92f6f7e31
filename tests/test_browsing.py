"""Listings on local folders, in memory, on S3 and GCS servers, and on one with awkward manners."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from servers import gcs_server, s3_server

from transforms import buckets
from transforms.browsing import files_matching, files_under
from transforms.buckets import Entry
from transforms.storage import version_of

NAMES = [
    "a[1].jpg", "what?.jpg", "été/猫.jpg", "deep/er/a b.jpg", "deep/b.jpg", "hash#percent%20.jpg",
    "x::y.jpg", "deep.jpg", "deep er/c.jpg", "star*/1.jpg", "back\\slash.jpg", "IMG_1.jpg",
    "IMG_2.png", "plus+and&.jpg", "deep/er/notes.txt", 'quo"te<&>.jpg', "many/many/many/m.jpg",
]  # fmt: skip


# As in test_stores.py. Read when gcsfs is imported: no module of the tests may do that earlier.
PLAIN_GCSFS = ("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with s3_server() as s3, gcs_server() as gcs, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", s3)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("STORAGE_EMULATOR_HOST", gcs)
        environment.setenv(*PLAIN_GCSFS)
        for scheme in ("s3", "gs"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
            filesystem = fsspec.filesystem(scheme)
            filesystem.mkdir("shelf")
            for name in NAMES:
                filesystem.pipe_file(f"shelf/in/{name}", name.encode())
            filesystem.pipe_file("shelf/inside.jpg", b"not below")
        # What consoles make for a folder: an object whose key ends with a slash. The emulator of
        # GCS cannot hold one; `Listing` below can.
        for key in ("in/", "in/deep/", "in/empty/"):
            fsspec.filesystem("s3").call_s3("put_object", Bucket="shelf", Key=key, Body=b"")
        yield
        for scheme in ("s3", "gs"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()


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


@pytest.fixture(autouse=True)
def no_leaked_thread() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while any(thread.name == "ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads that read ahead were left"
        time.sleep(0.01)


def names(entries: Iterator[Entry], folder: str) -> list[str]:
    return [entry.name.removeprefix(f"{folder}/") for entry in entries]


def flat_order(names: list[str]) -> list[str]:
    return sorted(names, key=str.encode)


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


def test_local_links_pipes_and_what_goes_away(tmp_path):
    local = fsspec.filesystem("file")
    shelf, farm = tmp_path / "shelf", tmp_path / "farm"
    (shelf / "box").mkdir(parents=True)
    farm.mkdir()
    (shelf / "b.jpg").write_bytes(b"12345")
    (shelf / "box" / "c.jpg").write_bytes(b"1")
    (farm / "link.jpg").symlink_to(shelf / "b.jpg")
    (farm / "broken.jpg").symlink_to(shelf / "gone.jpg")
    (farm / "loop.jpg").symlink_to(farm / "loop.jpg")
    (farm / "folder.jpg").symlink_to(shelf)
    (farm / "loop").symlink_to(farm)
    os.mkfifo(farm / "pipe.jpg")
    expected = ["broken.jpg", "link.jpg", "loop.jpg"]
    for found in (
        files_under(local, str(farm)),
        files_matching(local, f"{farm}/*.jpg"),
        files_matching(local, f"{farm}/**"),
    ):
        assert names(found, str(farm)) == expected
    # Links to folders are not entered, but the input itself, or the start of a glob, may be one.
    assert list(files_matching(local, f"{farm}/*/*.jpg")) == []
    assert list(files_matching(local, f"{tmp_path}/f*/folder.jpg/*.jpg")) == []
    assert names(files_under(local, f"{farm}/folder.jpg"), str(farm)) == [
        "folder.jpg/b.jpg", "folder.jpg/box/c.jpg",
    ]  # fmt: skip
    assert names(files_matching(local, f"{farm}/folder.jpg/*/*"), str(farm)) == [
        "folder.jpg/box/c.jpg"
    ]
    broken, link, _ = files_under(local, str(farm))
    target = next(files_under(local, str(shelf)))
    assert link[1:] == target[1:]
    assert broken.size == 0
    walking = files_under(local, str(shelf))
    assert next(walking).name.endswith("b.jpg")
    (shelf / "box" / "c.jpg").unlink()
    (shelf / "box").rmdir()
    assert list(walking) == []


def test_a_local_version_is_what_fsspec_tells(tmp_path):
    local = fsspec.filesystem("file")
    for name, times in (("a.jpg", (1, 1)), ("b.jpg", (0, 0)), ("c.jpg", (1.25, 2_000_000_000.5))):
        (tmp_path / name).write_bytes(b"123")
        os.utime(tmp_path / name, times)
    versions = [entry.version for entry in files_under(local, str(tmp_path))]
    infos = sorted(local.ls(str(tmp_path), detail=True), key=lambda info: info["name"])
    assert versions == [version_of(info) for info in infos]
    assert versions[0] == "1.0-3"


def test_local_names_that_are_not_utf8(tmp_path):
    local = fsspec.filesystem("file")
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "café.jpg").write_bytes(b"x")
    expected = sorted([name, "café.jpg"])
    assert names(files_under(local, str(tmp_path)), str(tmp_path)) == expected
    assert names(files_matching(local, f"{tmp_path}/*"), str(tmp_path)) == expected


def test_a_local_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    local = fsspec.filesystem("file")
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    real = os.scandir

    def scandir(path: str) -> Any:
        # Tests may run as a user whom no folder is closed to.
        if "closed" in path:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for found in (
        files_under(local, str(tmp_path)),
        files_matching(local, f"{tmp_path}/**"),
        files_matching(local, f"{tmp_path}/*/*.jpg"),
    ):
        with pytest.raises(PermissionError):
            list(found)
    assert names(files_matching(local, f"{tmp_path}/*.jpg"), str(tmp_path)) == ["a.jpg"]


def test_folders_deeper_than_the_stack(tmp_path):
    local = fsspec.filesystem("file")
    (tmp_path / "top").mkdir()
    here = os.open(tmp_path / "top", os.O_RDONLY)
    depth = 1500
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        assert depth > sys.getrecursionlimit()
        for found in (files_under(local, str(tmp_path)), files_matching(local, f"{tmp_path}/**")):
            assert [entry.name.count("/d") for entry in found] == [depth]
    finally:
        os.close(here)
        # Here, and not by pytest: shutil's removal is a recursion.
        subprocess.run(["rm", "-rf", tmp_path / "top"], check=True)


def test_no_more_than_a_local_folder_is_read_ahead(tmp_path):
    """The first file comes before the folders after it are looked at."""
    local = fsspec.filesystem("file")
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"x")
    walking = files_under(local, str(tmp_path))
    next(walking)
    (tmp_path / "c" / "2.jpg").write_bytes(b"x")
    assert len(list(walking)) == 3


class Listing(http.server.ThreadingHTTPServer):
    """Answers GCS's listing for `keys`, with `PAGE`s as asked; notes what was asked."""

    daemon_threads = True

    def __init__(self, keys: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.keys = flat_order(keys)
        self.asked: list[dict[str, str]] = []
        self.answering = self.most_answering = 0
        self.counting = threading.Lock()
        self.latency_s = 0.0
        self.knows_starts = True
        self.empty_pages = False
        self.failures: list[tuple[int, str]] = []
        """What the next answers are instead: a status, and the token they are for."""


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # Or every answer waits for the acknowledgement of its headers.
    server: Listing

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        server = self.server
        query = {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()}
        with server.counting:
            server.asked.append(query)
            server.answering += 1
            server.most_answering = max(server.most_answering, server.answering)
            failing = [each for each in server.failures if each[1] == query.get("pageToken", "")]
            if failing:
                server.failures.remove(failing[0])
        time.sleep(server.latency_s)
        status, reply = 200, self.page(query)
        if failing:
            status, reply = failing[0][0], {"error": {"message": "not now"}}
        body = json.dumps(reply).encode()
        with server.counting:
            server.answering -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        server, prefix, room = self.server, query.get("prefix", ""), int(query["maxResults"])
        start = query.get("startOffset", "") if server.knows_starts else ""
        end = query.get("endOffset") if server.knows_starts else None
        after = query.get("pageToken", "").rstrip("!")
        if server.empty_pages and not query.get("pageToken", "").endswith("!"):
            return {"nextPageToken": f"{after}!"}
        items: list[dict[str, str]] = []
        prefixes: list[str] = []
        for key in server.keys:
            if not key.startswith(prefix) or key < start or (end and key >= end):
                continue
            head, slash, _ = key[len(prefix) :].partition("/")
            folder = query.get("delimiter") and slash
            shown = prefix + head + slash if folder else key
            if shown <= after or shown in prefixes:
                continue
            if len(items) + len(prefixes) == room:
                token = max([item["name"] for item in items] + prefixes)
                return {"items": items, "prefixes": prefixes, "nextPageToken": token}
            if folder:
                prefixes.append(shown)
            else:
                items.append({"name": key, "generation": f"1{len(key)}", "size": "3"})
        return {"items": items, "prefixes": prefixes} if items or prefixes else {}


@pytest.fixture
def serve(monkeypatch) -> Iterator[Any]:
    monkeypatch.setenv(*PLAIN_GCSFS)
    servers = []

    def start(keys: list[str], page: int = 10) -> tuple[Listing, Any]:
        monkeypatch.setattr(buckets, "PAGE", page)
        monkeypatch.setattr(buckets, "FIRST_WAIT_S", 0.001)
        server = Listing(keys)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return server, fsspec.filesystem(
            "gs", endpoint_url=url, token="anon", skip_instance_cache=True
        )

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


SHAPES = {
    "nothing": [],
    "one page": [f"a/{n}" for n in range(10)],
    "one page and one": [f"a/{n:02}" for n in range(11)],
    "one folder of many": [f"a/{n:04}" for n in range(503)],
    "many folders": [f"{n:03}/{m}" for n in range(150) for m in range(3)],
    "few folders": [f"{n}/{m}/{k:02}" for n in range(3) for m in range(3) for k in range(17)],
    "one after the other": [f"a/b/c/d/{n}/{m:02}" for n in range(12) for m in range(12)],
    "deep without end": ["/".join("x" * depth) + "/f" for depth in range(1, 40)],
    "folders between files": [
        key for n in range(40) for key in (f"{n:02}", f"{n:02}/x", f"{n:02}/y", f"{n:02}0")
    ],
    "one long folder among short": [f"{n:02}/x" for n in range(30)]
    + [f"15/{n:04}" for n in range(300)],
    "folders in folders": [f"{n}/{m}/{k}" for n in range(9) for m in range(9) for k in range(9)],
    "slashes": [f"a//b{n}//c" for n in range(30)] + [f"/a/{n}" for n in range(30)],
    "placeholders": [f"{n:03}/" for n in range(50)]
    + [f"{n:03}/{m}" for n in range(25) for m in "é猫😀"],
    "only placeholders": [f"{n:03}/" for n in range(50)],
    "around the boundaries": [f"f{c}{n}" for n in range(60) for c in " /0\U0010ffff!~"],
}  # fmt: skip


@pytest.mark.parametrize("knows_starts", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_together_are_the_flat_listing(serve, shape, knows_starts):
    keys = SHAPES[shape]
    server, filesystem = serve([f"in/{key}" for key in keys] + ["in", "in.jpg", "im/x", "io/x"])
    server.knows_starts = knows_starts
    expected = [f"b/in/{key}" for key in flat_order(keys) if not key.endswith("/")]
    assert [entry.name for entry in files_under(filesystem, "b/in")] == expected
    # Of the slashes, the first folder is not like the others.
    if knows_starts and shape != "slashes":
        pages = len(keys) // 10 + 1
        assert len(server.asked) <= 2 * pages + 20
    assert [entry.name for entry in files_matching(filesystem, "b/in/**")] == expected


def test_a_small_prefix_is_one_request(serve):
    server, filesystem = serve(["in/a.jpg", "in/b/c.jpg", "in/b/d/e.jpg"])
    assert len(list(files_under(filesystem, "b/in"))) == 3
    assert len(server.asked) == 1


def test_many_small_folders_are_not_a_request_each(serve):
    server, filesystem = serve([f"in/{n:04}/{m}" for n in range(1000) for m in range(2)], 100)
    assert len(list(files_under(filesystem, "b/in"))) == 2000
    assert len(server.asked) <= 20 + 20 / buckets.RANGE_PAGES + 10 + 5


def test_pages_may_be_empty(serve):
    server, filesystem = serve([f"{n:02}/{m}" for n in range(20) for m in range(5)])
    server.empty_pages = True
    assert len(list(files_under(filesystem, "b"))) == 100
    assert len(list(files_matching(filesystem, "b/1*/*"))) == 50


def test_a_glob_does_not_enumerate_what_is_below(serve):
    server, filesystem = serve(
        [f"{n:03}/{m}.jpg" for n in range(5) for m in range(200)] + ["IMG_1.jpg", "IMG_2.jpg", "z"]
    )
    assert names(files_matching(filesystem, "b/IMG_*"), "b") == ["IMG_1.jpg", "IMG_2.jpg"]
    assert [(asked["prefix"], asked["delimiter"]) for asked in server.asked] == [("IMG_", "/")]
    server.asked.clear()
    assert names(files_matching(filesystem, "b/*.jpg"), "b") == ["IMG_1.jpg", "IMG_2.jpg"]
    assert len(server.asked) == 1
    server.asked.clear()
    expected = [f"00{n}/19{m}.jpg" for n in (1, 2) for m in ("", *range(10))]
    found = names(files_matching(filesystem, "b/00[12]/19*.jpg"), "b")
    assert found == flat_order(expected)
    assert {asked["prefix"] for asked in server.asked} == {"00", "001/19", "002/19"}


def test_parts_are_listed_at_a_time(serve):
    server, filesystem = serve([f"{n:02}/{m:02}" for n in range(64) for m in range(20)])
    server.latency_s = 0.02
    assert len(list(files_under(filesystem, "b"))) == 64 * 20
    assert 4 <= server.most_answering <= buckets.AT_ONCE


def test_what_waits_is_bounded(serve):
    server, filesystem = serve([f"{n:02}/{m:03}" for n in range(64) for m in range(100)])
    listing = files_under(filesystem, "b")
    for _ in range(15):
        next(listing)  # Into the second page: the parts are being read.
    time.sleep(0.5)
    asked = [query for query in server.asked if "delimiter" not in query]
    assert len(asked) <= 1 + buckets.AT_ONCE * (buckets.PAGES_AHEAD + 1) + 1
    assert len(server.asked) - len(asked) <= buckets.QUESTIONS
    listing.close()


@pytest.mark.parametrize("taken", [0, 1, 15, 400])
def test_an_abandoned_listing_leaves_nothing_running(serve, taken):
    """The fixture `no_leaked_thread` looks."""
    server, filesystem = serve([f"{n:02}/{m:02}" for n in range(64) for m in range(40)])
    for listing in (
        files_under(filesystem, "b"),
        files_matching(filesystem, "b/**/*"),
        files_matching(filesystem, "b/*/*"),
        files_matching(filesystem, "b/?*/**"),
    ):
        for _ in range(taken):
            next(listing)
        del listing
    server.latency_s = 0


def test_an_error_comes_at_its_place(serve):
    server, filesystem = serve([f"{n:04}" for n in range(100)])
    server.failures = [(400, "0049")]
    found = []
    with pytest.raises(Exception, match="not now"):  # noqa: PT012
        for entry in files_under(filesystem, "b"):
            found.append(entry.name)
    assert found == [f"b/{n:04}" for n in range(50)]
    assert [asked.get("pageToken") for asked in server.asked].count("0049") == 1


def test_a_page_that_fails_for_a_moment_is_asked_for_again(serve):
    """gcsfs itself asks again after a 503, but takes a 507 or a 529 for final."""
    server, filesystem = serve([f"{n:04}" for n in range(100)])
    server.failures = [(507, ""), (529, "0049"), (507, "0049"), (503, "0079")]
    assert names(files_under(filesystem, "b"), "b") == [f"{n:04}" for n in range(100)]
    assert not server.failures
    tokens = [asked.get("pageToken") for asked in server.asked]
    assert tokens.count("0049") == 3
    assert tokens.count("0079") == 2
    assert tokens.count("0059") == 1


def test_a_page_that_keeps_failing_is_an_error(serve):
    server, filesystem = serve([f"{n:04}" for n in range(100)])
    server.failures = [(507, "0049")] * buckets.ATTEMPTS
    with pytest.raises(Exception, match="not now"):
        list(files_under(filesystem, "b"))
    assert not server.failures


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
