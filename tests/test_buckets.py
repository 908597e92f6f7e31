"""Listings in pages, from a server that notes what it is asked and answers as it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from listings import PLAIN_GCSFS, Listing, check_no_thread_is_left, flat_order, names

from transforms import buckets
from transforms.browsing import files_matching, files_under


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
    check_no_thread_is_left()


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
    """The fixture looks."""
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
