"""That the server of faulty.py passes on what it gets, and fails just as it says."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faulty import KINDS, Faulty, Plan, faulty_server, fetches_object
from servers import gcs_server, s3_server

NAMES = ["été/猫 #%20[1]?.jpg", "a+b&c=d.jpg", "deep/er/x::y.jpg"]
DATA = bytes(range(256)) * 20
# moto looks for a signature, not at it.
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "served" / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA + bytes([number]))
    return tmp_path / "served"


def connect(server: Faulty, timeout: float = 10) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=timeout)


def fetch(server: Faulty, target: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = connect(server)
    try:
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def seen(server: Faulty, target: str, expected: str) -> str:
    """What a client would call what became of its request; it is patient unless silence is due."""
    connection = connect(server, timeout=0.6 if expected in ("stall", "hang") else 20)
    try:
        connection.request("GET", target, headers=SIGNED)
        answer = connection.getresponse()
    except TimeoutError:
        return "stall"
    except ConnectionResetError as error:
        # http.client has a subclass of its own for an end without an answer, which is no reset.
        return "reset" if type(error) is ConnectionResetError else repr(error)
    try:
        answer.read()
        return "whole" if answer.status == 200 else str(answer.status)
    except http.client.IncompleteRead as error:
        # Of an odd number of bytes the larger half is missing.
        return "cut" if 0 <= (error.expected or 0) - len(error.partial) <= 1 else repr(error)
    except TimeoutError:
        return "hang"
    finally:
        connection.close()


def test_each_fault_is_what_it_is_called(folder):
    kinds = [*KINDS, "hang"]
    plan = Plan(1.0, kinds, most=len(kinds))
    path = "/archive/deep/er/x::y.jpg"
    expected = [plan.next(path) or "whole" for _ in range(len(kinds) + 1)]
    assert sorted(expected) == sorted([*kinds, "whole"])
    with faulty_server(folder=folder, faults=1, kinds=kinds, most=len(kinds)) as server:
        assert [seen(server, path, kind) for kind in expected] == expected
        counts = server.counts()
    assert counts["faults"] == dict.fromkeys(kinds, 1)
    assert counts["requests"] == counts["objects"] == len(expected)


def test_errors_are_in_the_words_of_the_store(folder):
    kinds = ["503", "404"]
    with faulty_server(folder=folder, faults=1, kinds=kinds, most=2, retry_after=7) as server:
        for path in ("/archive/x", "/download/storage/v1/b/archive/o/x"):
            connection = connect(server)
            for _ in kinds:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.getheader("Retry-After") == ("7" if answer.status == 503 else None)
                if path.startswith("/download"):
                    assert json.loads(body)["error"]["code"] == answer.status
                else:
                    code = {503: b"SlowDown", 404: b"NoSuchKey"}[answer.status]
                    assert b"<Code>" + code in body
            connection.close()
        assert fetch(server, "/_faulty/status/418")[0] == 418
        assert fetch(server, "/_faulty/nothing")[0] == 404
        assert server.counts()["requests"] == 4


def test_the_same_seed_fails_the_same_attempts(folder):
    paths = [f"/archive/{number}" for number in range(20)]
    with faulty_server(
        folder=folder, faults=0.5, kinds=["503", "429"], most=2, seed=3, count_paths=True
    ) as server:

        def outcomes(order: list[str]) -> dict[str, list[int]]:
            found: dict[str, list[int]] = {path: [] for path in paths}
            connection = connect(server)
            for path in order * 3:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                found[path].append(answer.status)
            connection.close()
            return found

        first = outcomes(paths)
        counts = server.counts()
        server.reset()
        assert server.counts() == {
            "requests": 0, "objects": 0, "faults": {}, "most_at_once": 0, "bytes": 0,
            "per_path": {},
        }  # fmt: skip
        # In another order: a path's faults are its own.
        assert outcomes(paths[::-1]) == first
    plan = Plan(0.5, ["503", "429"], most=2, seed=3)
    assert first == {path: [int(plan.next(path) or 404) for _ in range(3)] for path in paths}
    statuses = Counter(itertools.chain(*first.values()))
    assert counts["faults"] == {"503": statuses[503], "429": statuses[429]}
    assert counts["per_path"] == dict.fromkeys(paths, 3)
    other = Plan(0.5, ["503", "429"], most=2, seed=4)
    assert first != {path: [int(other.next(path) or 404) for _ in range(3)] for path in paths}


def test_failures_in_a_row_are_bounded_and_their_share_is_met():
    plan = Plan(1.0, KINDS, most=3)
    assert [plan.next("/a") is None for _ in range(8)] == [False, False, False, True] * 2
    plan = Plan(0.3, KINDS, most=3)
    kinds = Counter(plan.next(f"/{number}") for number in range(7000))
    assert 0.28 < 1 - kinds.pop(None) / 7000 < 0.32
    assert sorted(kinds) == sorted(KINDS)
    assert min(kinds.values()) > 0.8 * max(kinds.values())


def test_only_what_is_chosen_fails(folder):
    def statuses(**options: Any) -> list[int]:
        targets = ["/archive?list-type=2", "/storage/v1/b/archive/o", "/archive/deep/er/x::y.jpg"]
        with faulty_server(folder=folder, faults=1, kinds=["503"], **options) as server:
            found = [fetch(server, target)[0] for target in targets]
            return [*found, fetch(server, targets[-1], "HEAD")[0]]

    assert statuses() == [200, 200, 503, 200]
    assert statuses(only="list-type|/o$") == [503, 503, 200, 200]
    assert statuses(methods=["HEAD"]) == [200, 200, 200, 503]


@pytest.mark.parametrize(
    ("target", "is_object"),
    [
        ("/bucket/a/key", True),
        ("/bucket/key?x-id=GetObject&versionId=1", True),
        ("/bucket/key?uploadId=1", False),
        ("/bucket?list-type=2", False),
        ("/bucket/?prefix=a", False),
        ("/bucket", False),
        ("/", False),
        ("/download/storage/v1/b/bucket/o/a%2Fkey?alt=media", True),
        ("/storage/v1/b/bucket/o/key?alt=media", True),
        ("/storage/v1/b/bucket/o/key", False),
        ("/storage/v1/b/bucket/o?prefix=a", False),
        ("/upload/storage/v1/b/bucket/o", False),
    ],
)
def test_what_fetches_an_object(target, is_object):
    assert fetches_object(target, in_bucket=True) is is_object


async def at_once(server: Faulty, target: str, count: int) -> None:
    """So many requests, all of them sent before the first answer is awaited."""
    port = int(server.url.rpartition(":")[2])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in connections:
        writer.write(f"GET {target} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    for reader, writer in connections:
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


def test_delays_overlap(folder):
    with faulty_server(folder=folder, delay=0.25) as server:
        started = time.monotonic()
        asyncio.run(at_once(server, "/archive/deep/er/x::y.jpg", 40))
        assert 0.25 <= time.monotonic() - started < 40 * 0.25 / 2
        counts = server.counts()
        assert counts["most_at_once"] == counts["objects"] == 40
        assert counts["bytes"] == 40 * (len(DATA) + 1)
        server.reset()
        # A listing takes no part in it.
        assert fetch(server, "/archive?list-type=2")[0] == 200
        assert server.counts()["most_at_once"] == 0
        assert fetch(server, "/archive/missing")[0] == 404
        assert server.counts()["most_at_once"] == 1


def test_static_files(folder):
    target = "/archive/%C3%A9t%C3%A9/%E7%8C%AB%20%23%2520%5B1%5D%3F.jpg"
    path = folder / "archive" / NAMES[0]
    data = path.read_bytes()
    (folder.parent / "secret").write_bytes(b"")
    with faulty_server(folder=folder) as server:
        connection = connect(server)
        tags = []
        for _ in range(2):
            connection.request("GET", target)
            answer = connection.getresponse()
            tags.append(answer.getheader("ETag"))
            assert answer.read() == path.read_bytes()
            # What was read from memory is noticed when it changes on the disk.
            path.write_bytes(b"another")
        connection.close()
        assert len(set(tags)) == 2
        path.write_bytes(data)
        assert fetch(server, target, Range="bytes=3-9") == (206, data[3:10])
        assert fetch(server, target, Range="bytes=-9") == (206, data[-9:])
        assert fetch(server, target, Range="bytes=5000-") == (206, data[5000:])
        assert fetch(server, target, Range=f"bytes={len(data)}-")[0] == 416
        assert fetch(server, target, "HEAD") == (200, b"")
        assert fetch(server, "/archive/missing")[0] == 404
        assert fetch(server, "/archive/deep")[0] == 404
        assert fetch(server, "/../secret")[0] == 404
        assert fetch(server, "/%2e%2e/secret")[0] == 404
        assert fetch(server, target, "DELETE")[0] == 405


class _Recorder(BaseHTTPRequestHandler):
    """An upstream server that says what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, list[tuple[str, str]], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.requestline, self.headers.items(), body))
        self.send_response_only(299, "Fine By Me")
        self.send_header("X-Odd", "a: b,  c")
        self.send_header("x-odd", "again")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3;note=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: t\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[tuple[str, type[_Recorder]]]:
    class Recorder(_Recorder):
        asked: list[tuple[str, list[tuple[str, str]], bytes]] = []  # noqa: RUF012

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as upstream:
        thread = threading.Thread(target=upstream.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{upstream.server_port}", Recorder
        upstream.shutdown()
        thread.join()


def test_requests_and_answers_pass_as_they_are(recorder):
    upstream, asked = recorder
    target = "/b//./..%2F%2f/%C3%a9é+%20?q=%zz&é=/?#x"
    head = (
        f"POST {target} HTTP/1.1\r\nHost: archive.test:1\r\nX-Mixed:  Case \r\n"
        "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    ).encode()
    with faulty_server(upstream=upstream) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head)
            answers = connection.makefile("rb")
            assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert answers.readline() == b"\r\n"
            connection.sendall(b"a\r\n\0b")
            expected = (
                b"HTTP/1.1 299 Fine By Me\r\nX-Odd: a: b,  c\r\nx-odd: again\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
                b"3;note=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: t\r\n\r\n"
            )
            assert answers.read(len(expected)) == expected
            # The connection goes on.
            connection.sendall(b"GET /_faulty/counts HTTP/1.1\r\n\r\n")
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            answers.close()
    [(line, headers, body)] = asked.asked
    assert line.encode("latin-1") == f"POST {target} HTTP/1.1".encode()
    assert ("Host", "archive.test:1") in headers
    assert ("X-Mixed", "Case ") in headers or ("X-Mixed", "Case") in headers
    assert body == b"a\r\n\0b"


def test_an_upstream_that_is_not_there():
    with faulty_server(upstream="http://127.0.0.1:9") as server:
        assert fetch(server, "/archive/x")[0] == 502


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Clients of both stores, of which none is left from another test's server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for scheme in ("s3", "gs"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    yield monkeypatch
    for scheme in ("s3", "gs"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()


@pytest.mark.parametrize(
    ("scheme", "variable", "emulator"),
    [
        ("s3", "AWS_ENDPOINT_URL", s3_server),
        ("gs", "STORAGE_EMULATOR_HOST", gcs_server),
    ],
    ids=["s3", "gs"],
)
def test_in_front_of_an_emulator(clients, scheme, variable, emulator):
    big = DATA * 2500
    with emulator() as upstream, faulty_server(upstream=upstream, count_paths=True) as server:
        clients.setenv(variable, server.url)
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
        store.mkdir("archive")
        for name in NAMES:
            store.pipe_file(f"archive/in/{name}", name.encode() + DATA)
        store.pipe_file("archive/in/big", big)
        store.invalidate_cache()
        server.reset()
        found = store.find("archive/in", detail=True)
        assert {name: entry["size"] for name, entry in found.items()} == {
            "archive/in/big": len(big),
            **{f"archive/in/{name}": len(name.encode() + DATA) for name in NAMES},
        }
        counts = server.counts()
        assert counts["requests"] > 0
        assert (counts["objects"], counts["per_path"]) == (0, {})
        before = counts["bytes"]
        for name in NAMES:
            assert store.cat_file(f"archive/in/{name}") == name.encode() + DATA
        assert store.cat_file("archive/in/big") == big
        counts = server.counts()
        assert counts["objects"] == len(NAMES) + 1
        assert counts["bytes"] - before == sum(entry["size"] for entry in found.values())
        assert list(counts["per_path"].values()) == [1] * (len(NAMES) + 1)
        assert counts["faults"] == {}
        assert store.cat_file("archive/in/big", start=10, end=99) == big[10:99]
        with pytest.raises(FileNotFoundError):
            store.cat_file("archive/in/missing")

        # The same objects, as another server in front of the same emulator mangles them.
        big_path = next(path for path in counts["per_path"] if path.endswith("big"))
        with faulty_server(
            upstream=upstream, faults=1, kinds=["cut", "503", "hang", "reset"], most=4
        ) as failing:
            target = big_path + ("?alt=media" if scheme == "gs" else "")
            plan = Plan(1, ["cut", "503", "hang", "reset"], most=4)
            expected = [plan.next(big_path) or "whole" for _ in range(5)]
            assert [seen(failing, target, kind) for kind in expected] == expected
            assert failing.counts()["faults"] == {"cut": 1, "503": 1, "hang": 1, "reset": 1}


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "STORAGE_EMULATOR_HOST")]
)
def test_a_folder_as_a_store(clients, folder, scheme, variable):
    for number in range(1050):
        (folder / "archive" / "deep" / f"{number:04}").write_bytes(b"x")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    with faulty_server(folder=folder) as server:
        clients.setenv(variable, server.url)
        store = fsspec.filesystem(scheme, skip_instance_cache=True)
        for name in NAMES:
            assert store.cat_file(f"archive/{name}") == files[f"archive/{name}"]
        assert server.counts()["objects"] == len(NAMES)
        # More of them than a page holds.
        sizes = {name: entry["size"] for name, entry in store.find("archive", detail=True).items()}
        assert sizes == {name: len(data) for name, data in files.items()}
        store.invalidate_cache()
        walked = [
            f"{parent}/{name}" for parent, _, names in store.walk("archive") for name in names
        ]
        assert sorted(walked) == sorted(files)
        assert store.isfile(f"archive/{NAMES[0]}")
        assert store.isdir("archive/deep")
        assert not store.exists("archive/missing")
        assert not store.exists("nobucket/missing")
        with pytest.raises(FileNotFoundError):
            store.cat_file("archive/missing")
        with pytest.raises(FileNotFoundError):
            store.ls("nobucket")
