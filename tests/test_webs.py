"""The whole job against web servers that answer oddly: each answer is a row, none ends the run."""

from __future__ import annotations

import gzip
import io
import os
import socketserver
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Job, Outcome, encoded, picture

PICTURE = encoded(picture())
Answer = bytes | Callable[[socketserver.StreamRequestHandler], None]


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, Answer]]]:
    """A server's address, and what it answers, byte for byte, by path."""
    answers: dict[str, Answer] = {}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.method, path = self.rfile.readline().decode().split()[:2]
            while self.rfile.readline().strip():
                pass
            answer = answers.get(
                path, b"HTTP/1.1 404 None\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            if callable(answer):
                answer(self)
            else:
                self.wfile.write(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()


def ok(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    count = len(body) if length is None else length
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % count, *headers, b"Connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def moved(location: bytes) -> bytes:
    head = b"HTTP/1.1 302 Found\r\nLocation: " + location
    return head + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def listed(job: Job, tmp_path: Path, uris: list[str], **flags) -> Outcome:
    (tmp_path / "web.txt").write_text("\n".join(uris))
    done = job(input=tmp_path / "web.txt", **{"read_deadline": 6, **flags})
    assert done.status == 0, done.err
    return done


def test_answers_that_are_a_picture_after_all(job: Job, web, tmp_path):
    address, answers = web
    answers["/latin.jpg"] = ok(PICTURE, b'ETag: "\xff\xfe"')
    answers["/weak.jpg"] = ok(PICTURE, b'ETag: W/"abc"')
    answers["/dated.jpg"] = ok(PICTURE, b"Last-Modified: Sun, 22 Nov 2026 01:02:03 GMT")
    answers["/packed.jpg"] = ok(gzip.compress(PICTURE), b"Content-Encoding: gzip")
    answers["/open.jpg"] = b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE
    answers["/moved.jpg"] = moved(b"/weak.jpg")
    done = listed(job, tmp_path, [f"{address}{path}" for path in answers])
    assert [row["message"] for row in done.table("failures")] == []
    versions = {row["uri"].rpartition("/")[2]: row["version"] for row in done.table("embeddings")}
    assert versions == {
        "latin.jpg": "\\xff\\xfe",
        "weak.jpg": "abc",
        "dated.jpg": "Sun, 22 Nov 2026 01:02:03 GMT",
        "packed.jpg": "",
        "open.jpg": "",
        "moved.jpg": "abc",
    }


def test_answers_that_are_none(job: Job, web, tmp_path):
    address, answers = web
    answers["/later.jpg"] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"
    answers["/nowhere.jpg"] = (
        b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    answers["/loop.jpg"] = moved(b"/loop.jpg")
    answers["/bucket.jpg"] = moved(b"s3://a/b")
    answers["/bad.jpg"] = moved(b"http://\xff\xfe:99999/")
    answers["/garbage.jpg"] = b"\xff\xd8 this is no HTTP\r\n\r\n"
    answers["/short.jpg"] = ok(PICTURE, length=len(PICTURE) + 10)
    answers["/page.jpg"] = ok(b"<html>no such picture</html>")
    done = listed(job, tmp_path, [f"{address}{path}" for path in answers], read_deadline=2)
    assert {
        row["uri"].rpartition("/")[2]: (row["reason"], row["retryable"])
        for row in done.table("failures")
    } == {
        "later.jpg": ("read_error", True),
        "nowhere.jpg": ("read_error", True),
        "loop.jpg": ("unsupported_uri", False),
        "bucket.jpg": ("unsupported_uri", False),
        "bad.jpg": ("unsupported_uri", False),
        "garbage.jpg": ("read_error", True),
        "short.jpg": ("unavailable", True),
        "page.jpg": ("not_an_image", False),
    }
    assert done.table("embeddings") == []


def endless(handler: socketserver.StreamRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        return


def drip(handler: socketserver.StreamRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    try:
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.1)
    except OSError:
        return


def test_answers_without_end(job: Job, web, tmp_path):
    address, answers = web
    answers["/endless.jpg"] = endless
    answers["/drip.jpg"] = drip
    uris = [f"{address}{path}" for path in answers]
    done = listed(job, tmp_path, uris, read_deadline=2, max_bytes=20_000_000)
    assert [row["reason"] for row in done.table("failures")] == ["timed_out", "too_many_bytes"]


def tar_of(count: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(count):
            data = encoded(picture(seed=number))
            info = tarfile.TarInfo(f"{number:03d}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_a_tar_of_a_server_without_ranges(job: Job, web):
    address, answers = web
    answers["/set.tar"] = ok(tar_of(5), b'ETag: "t1"')
    done = job(input=f"{address}/set.tar")
    assert done.status == 0, done.err
    assert [row["id"] for row in done.table("embeddings")] == [f"{n:03d}" for n in range(5)]
    assert done.table("failures") == []


def test_a_tar_of_a_server_that_stops_giving_ranges(job: Job, web, monkeypatch):
    monkeypatch.setattr("transforms.fetching.BLOCK_BYTES", 4000)
    address, answers = web
    whole = tar_of(5)
    partial = ok(whole[:4000]).replace(b"200 OK", b"206 Partial Content")
    ranges = iter([partial])

    def forgetful(handler) -> None:
        if handler.method == "HEAD":
            handler.wfile.write(ok(b"", length=len(whole)))
        else:
            handler.wfile.write(next(ranges, ok(whole)))

    answers["/set.tar"] = forgetful
    done = job(input=f"{address}/set.tar")
    assert done.status == 0, done.err
    assert done.table("failures") == []
    assert [row["id"] for row in done.table("embeddings")] == [f"{n:03d}" for n in range(5)]


def test_a_tar_whose_server_breaks_off_is_a_row(job: Job, web, monkeypatch):
    monkeypatch.setattr("transforms.fetching.TRIES", 2)
    address, answers = web
    whole = tar_of(5)
    answers["/set.tar"] = ok(whole[:4000], length=len(whole))
    done = job(input=f"{address}/set.tar", read_deadline=4)
    assert done.status == 0, done.err
    (failure,) = done.table("failures")
    assert (failure["uri"], failure["reason"]) == (f"{address}/set.tar", "unavailable")
    assert failure["retryable"]


def test_a_tar_whose_server_stalls_is_a_row(job: Job, web, monkeypatch):
    monkeypatch.setattr("transforms.fetching.TRIES", 2)
    address, answers = web

    def stall(handler) -> None:
        if handler.method == "HEAD":  # The listing gets its answer.
            handler.wfile.write(ok(b"", length=5000))
        else:
            time.sleep(3)

    answers["/set.tar"] = stall
    done = job(input=f"{address}/set.tar", read_deadline=2)
    assert done.status == 0, done.err
    (failure,) = done.table("failures")
    assert (failure["reason"], failure["retryable"]) == ("timed_out", True)


def test_what_is_no_file_is_a_row(job: Job, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    done = listed(job, tmp_path, [str(tmp_path / "pipe.jpg"), "/dev/zero", str(tmp_path)])
    assert [row["reason"] for row in done.table("failures")] == ["unsupported_uri"] * 3


def test_a_pair_keeps_the_version_of_what_was_read(job: Job, web, tmp_path):
    address, answers = web
    answers["/broken.jpg"] = ok(b"<html>", b'ETag: "e1"')
    (tmp_path / "list.csv").write_text(f"uri,text\n{address}/broken.jpg,a dog\n")
    done = job(input=tmp_path / "list.csv")
    (row,) = done.table("embeddings")
    assert row["version"].startswith("e1+text-")
    assert row["unused"] == "image: not_an_image"
