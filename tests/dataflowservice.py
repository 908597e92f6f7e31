"""A small Dataflow on loopback: takes jobs over REST as the service does, and says their states."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUNNING, DONE, FAILED, CANCELLED = 2, 3, 4, 5
"""Of its enumeration of states, as numbers: the clients ask for them so."""

_JOBS = re.compile(
    r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs(/(?P<id>.+))?"
)


class Service:
    """The jobs that were made, as asked for; `on_look` is called when one is looked at."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.on_look: Callable[[], None] = lambda: None

    def create(self, project: str, region: str, request: dict[str, Any]) -> dict[str, Any]:
        number = f"2026-11-26_00_00_00-{len(self.jobs)}"
        self.requests.append(request)
        job = {
            "id": number, "name": request["name"], "projectId": project, "location": region,
            "currentState": RUNNING, "createTime": datetime.now(UTC).isoformat(),
            "clientRequestId": request.get("clientRequestId", ""),
        }  # fmt: skip
        self.jobs[number] = job
        return job

    def end(self, state: int) -> None:
        """All jobs are over."""
        for job in self.jobs.values():
            job["currentState"] = state


@contextlib.contextmanager
def dataflow_service() -> Iterator[tuple[Service, list[str]]]:
    """The service, and the options with which jobs go to it."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            named = _JOBS.fullmatch(path)
            if named is None or (named["id"] and named["id"].split("/")[0] not in service.jobs):
                self._send(404, {"error": {"code": 404, "message": f"no {path}"}})
            elif self.command == "POST":
                self._send(200, service.create(named["project"], named["region"], json.loads(body)))
            elif not named["id"]:
                found = [job for job in service.jobs.values() if f"name={job['name']}" in query]
                self._send(200, {"jobs": found})
            elif "/" in named["id"]:  # messages, metrics
                self._send(200, {})
            else:
                job = service.jobs[named["id"]]
                if self.command == "PUT":
                    job["currentState"] = json.loads(body)["requestedState"]
                else:
                    service.on_look()
                self._send(200, job)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield (
            service,
            [
                # Beam's client speaks REST to what is called so.
                f"--dataflow_endpoint=http://localhost:{server.server_port}",
                "--no_auth",
                # A `pip freeze`, which takes seconds.
                "--experiments=disable_logging_submission_environment",
            ],
        )
        server.shutdown()
