"""What is listed, told by names; and a server of listings with awkward manners."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from transforms.buckets import Entry

# As in test_stores.py. Read when gcsfs is imported: no module of the tests may do that earlier.
PLAIN_GCSFS = ("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def names(entries: Iterator[Entry], folder: str) -> list[str]:
    return [entry.name.removeprefix(f"{folder}/") for entry in entries]


def flat_order(names: list[str]) -> list[str]:
    return sorted(names, key=str.encode)


def check_no_thread_is_left() -> None:
    """Wait until the threads that read ahead are gone."""
    deadline = time.monotonic() + 10
    while any(thread.name == "ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads that read ahead were left"
        time.sleep(0.01)


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
