from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from servers import both_stores

from transforms import runlock
from transforms.publishing import publish
from transforms.runlock import HeldError, LostPlaceError, check_place, take_place
from transforms.storage import locate, read_object, use_storage_options

LONG_S = 60.0
"""A watch that a test would not outlive: what ends sooner has not watched."""

CANDIDATES = 8
NUMBERS = count()


@pytest.fixture(scope="module", autouse=True)
def stores():
    with both_stores("shelf"):
        yield


@pytest.fixture(params=["local", "s3", "gs", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return f"{tmp_path}/out"
    return f"{request.param}://shelf/out {next(NUMBERS)}"


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"{tmp_path}/out"


def take(output: str, run_id: str, **options: object) -> runlock.Place:
    """`take_place` with a settling that is enough for servers on loopback."""
    return take_place(output, run_id, **{"watch_s": LONG_S, "settle_s": 0.05, **options})


def lock_url(output: str) -> str:
    return f"{output}/{runlock.NAME}"


def lock_of(output: str) -> dict:
    return json.loads(read_object(lock_url(output)))


def change_lock(output: str, **changes: object) -> bytes:
    content = json.dumps({**lock_of(output), **changes}).encode()
    publish(lock_url(output), content)
    return content


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HOLD = """
import sys, time
from transforms.runlock import take_place
place = take_place(sys.argv[1], sys.argv[2])
place.start_beating()
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


@contextlib.contextmanager
def holder(output: str, run_id: str, seconds: float = 60) -> Iterator[subprocess.Popen]:
    """A process of its own that holds the place and never gives it back."""
    command = [sys.executable, "-c", HOLD, output, run_id, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def dead_lock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run left that was killed with SIGKILL."""
    output = str(tmp_path_factory.mktemp("killed"))
    with holder(output, "killed"):
        pass
    return read_object(lock_url(output))


# One holder.


def test_the_place_is_one_runs_until_it_is_given_back(output):
    with take(output, "first") as place:
        assert (place.run_id, place.dead, place.lost) == ("first", (), False)
        check_place(output, "first")
        with pytest.raises(LostPlaceError, match=r"not held by run second .* by run first"):
            check_place(output, "second")
        with pytest.raises(HeldError):
            take(output, "second")
    with pytest.raises(LostPlaceError, match="its lock is gone"):
        check_place(output, "first")
    with take(output, "second"):
        check_place(output, "second")


def test_an_error_gives_the_place_back(local):
    with pytest.raises(ZeroDivisionError), take(local, "first"):
        raise ZeroDivisionError
    assert os.listdir(local) == []


def test_held_error_tells_who_and_since_when(local):
    with take(local, "first"):
        lock = lock_of(local)
        seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 12))
        change_lock(local, since="2026-11-24T02:00:00Z", seen=seen)
        with pytest.raises(HeldError) as caught:
            take(local, "second")
    assert re.fullmatch(
        rf"{re.escape(local)} is held by run first \(host {lock['host']}, process {os.getpid()}\) "
        r"since 2026-11-24 02:00:00 UTC, last seen 1[2-5] s ago; --take_over takes its place",
        str(caught.value),
    )


def test_a_lock_is_whole_and_says_what_it_must(local):
    with take(local, "first"):
        assert sorted(os.listdir(local)) == [runlock.NAME]
        lock = lock_of(local)
    assert (lock["run_id"], lock["pid"], lock["beat"], lock["dead"]) == (
        "first", os.getpid(), 0, [],
    )  # fmt: skip
    assert lock["host"]
    assert lock["user"]
    assert int(lock["started"]) > 0
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in lock["boot"]


@pytest.mark.parametrize("run_id", ["", "../up", "two words", "-x"])
def test_a_run_id_is_a_name(local, run_id):
    with pytest.raises(ValueError, match="is no run id"):
        take(local, run_id)


@pytest.mark.parametrize("where", ["a file", "s3://absent-bucket/out", "gs://absent-bucket/out"])
def test_an_output_that_cannot_be_written_raises_the_stores_own_error(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file|bucket"):
        take(f"{tmp_path}/file" if where == "a file" else where, "first")


# Dead or alive.


@pytest.mark.parametrize("output", ["local", "s3", "gs"], indirect=True)
def test_the_command_that_was_killed_goes_on_when_it_is_run_again(output, caplog):
    caplog.set_level(logging.INFO, "beamtag")
    with holder(output, "killed") as process:
        with pytest.raises(HeldError, match=f"run killed .*process {process.pid}"):
            take(output, "second")
        process.kill()
        # Nobody waits for it: it becomes a zombie.
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        with take(output, "second") as place:
            assert place.dead == ("killed",)
            check_place(output, "second")
    assert "this run takes the place of run killed" in caplog.text


def test_a_process_that_has_the_dead_ones_id_is_not_it(local, dead_lock):
    publish(lock_url(local), dead_lock)
    change_lock(local, pid=os.getpid())
    with take(local, "second") as place:
        assert place.dead == ("killed",)
        change_lock(local, started="")  # It cannot be told apart: it may be alive.
        with pytest.raises(HeldError):
            take(local, "third")


@pytest.mark.parametrize("lie", [{"host": "elsewhere"}, {"boot": "another"}, {"boot": ""}])
def test_the_process_of_another_machine_is_not_looked_for_here(local, dead_lock, lie, caplog):
    caplog.set_level(logging.INFO, "beamtag")
    publish(lock_url(local), dead_lock)
    change_lock(local, **lie)
    started = time.monotonic()
    with take(local, "second", beat_s=0.1, watch_s=0.4) as place:
        assert time.monotonic() - started >= 0.4
        assert place.dead == ("killed",)
    assert "watching for 0 s whether it lives" in caplog.text


def test_a_run_of_another_machine_lives_while_its_lock_changes(output):
    with take(output, "first", beat_s=0.1) as place:
        change_lock(output, host="elsewhere", seen="2001-01-01T00:00:00Z")
        place.start_beating()
        # By this machine's watch alone: the other's clock is years behind.
        with pytest.raises(HeldError, match=r"host elsewhere.*last seen 0 s ago"):
            take(output, "second", beat_s=0.1)
        check_place(output, "first")


def test_a_lock_that_goes_away_while_it_is_watched_is_no_dead_runs(local):
    place = take(local, "first")
    change_lock(local, host="elsewhere")
    threading.Timer(0.2, place.release).start()
    with take(local, "second", beat_s=0.1) as second:
        assert second.dead == ()


GARBAGE = {
    "empty": b"",
    "binary": b"\xff\x00",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "lacking": b'{"run_id": "x"}',
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_watched_and_taken(local, kind):
    publish(lock_url(local), GARBAGE[kind])
    with pytest.raises(LostPlaceError, match="cannot be read"):
        check_place(local, "first")
    with take(local, "first", beat_s=0.1, watch_s=0.2) as place:
        assert place.dead == ()
        check_place(local, "first")


@pytest.mark.parametrize(
    "lie",
    [
        {"run_id": "../../etc"}, {"dead": ["../x"]}, {"dead": None}, {"pid": 0}, {"pid": 1 << 40},
        {"pid": 1.5}, {"beat": "1"}, {"since": "yesterday"}, {"host": "two\nlines"}, {"boot": 7},
    ],
)  # fmt: skip
def test_a_lock_with_nonsense_in_it_is_garbage(local, dead_lock, lie):
    publish(lock_url(local), dead_lock)
    publish(lock_url(local), change_lock(local, **lie))
    changing = threading.Timer(0.2, publish, (lock_url(local), b"more of it"))
    changing.start()
    with pytest.raises(
        HeldError, match=r"a run whose lock _beamtag_lock\.json cannot be read, last"
    ):
        take(local, "second", beat_s=0.1)
    changing.join()


# Taking over.


def test_take_over_asks_nobody(output):
    with take(output, "first") as first:
        with take(output, "second", take_over=True) as second:
            assert second.dead == ("first",)
            with pytest.raises(LostPlaceError, match="but by run second"):
                check_place(output, "first")
            first.release()
            check_place(output, "second")
        with pytest.raises(LostPlaceError):
            check_place(output, "first")


def test_take_over_takes_from_one_that_beats_fast(output):
    with take(output, "first", beat_s=0.001) as first:
        first.start_beating()
        with take(output, "second", take_over=True):
            wait_until(lambda: first.lost)
            check_place(output, "second")


def test_take_over_of_nobodys_place(local):
    with take(local, "first", take_over=True) as place:
        assert place.dead == ()


def test_the_dead_are_carried_along_until_tidied(output, dead_lock):
    publish(lock_url(output), dead_lock)
    take(output, "second")
    take(output, "third", take_over=True)
    with take(output, "fourth", take_over=True) as place:
        assert place.dead == ("killed", "second", "third")
        assert lock_of(output)["dead"] == ["killed", "second", "third"]
        place.tidied()
        assert (place.dead, lock_of(output)["dead"]) == ((), [])
        check_place(output, "fourth")
        assert take(output, "fifth", take_over=True).dead == ("fourth",)


# Races.

RACE = """
import sys
from transforms.runlock import HeldError, take_place
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    try:
        take_place(line.rstrip("\\n"), f"run-{sys.argv[1]}", watch_s=60)
        print("won", flush=True)
    except HeldError as error:
        print(error, flush=True)
"""


def test_of_many_processes_exactly_one_gets_a_place(tmp_path, dead_lock):
    outputs = []
    for number in range(12):
        outputs.append(str(tmp_path / f"out-{number}"))
        if number % 2:
            publish(lock_url(outputs[-1]), dead_lock)
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(CANDIDATES):
            process = subprocess.Popen(
                [sys.executable, "-c", RACE, str(number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.kill)
            processes.append(stack.enter_context(process))
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for output in outputs:
            for process in processes:
                process.stdin.write(f"{output}\n")
            for process in processes:
                process.stdin.flush()
            said = [process.stdout.readline() for process in processes]
            assert said.count("won\n") == 1
            winner = f"run-{said.index('won' + chr(10))}"
            assert sum(f"is held by run {winner} " in line for line in said) == CANDIDATES - 1
            check_place(output, winner)
            assert os.listdir(output) == [runlock.NAME]


def race(output: str, **options: object) -> list[runlock.Place | HeldError]:
    """What came of as many candidates at once."""
    barrier = threading.Barrier(CANDIDATES)

    def candidate(number: int) -> runlock.Place | HeldError:
        barrier.wait()
        try:
            return take(output, f"run-{number}", settle_s=1.5, **options)
        except HeldError as error:
            return error

    with ThreadPoolExecutor(CANDIDATES) as pool:
        return list(pool.map(candidate, range(CANDIDATES)))


@pytest.mark.parametrize("dead", [False, True], ids=["free", "dead"])
def test_of_many_threads_exactly_one_gets_a_place(output, dead_lock, dead):
    for number in range(2):
        place = f"{output}-{number}"
        if dead:
            publish(lock_url(place), dead_lock)
        results = race(place)
        (winner,) = [found for found in results if isinstance(found, runlock.Place)]
        assert winner.dead == (("killed",) if dead else ())
        check_place(place, winner.run_id)


def test_of_many_who_take_over_the_last_holds_it(local):
    take(local, "first")
    winners = [found for found in race(local, take_over=True) if isinstance(found, runlock.Place)]
    holding = lock_of(local)["run_id"]
    assert [place.run_id for place in winners].count(holding) == 1
    for place in winners:
        if place.run_id != holding:
            with pytest.raises(LostPlaceError):
                check_place(local, place.run_id)


# Keeping it.


def test_a_beat_shows_that_the_run_lives(output):
    with take(output, "first", beat_s=0.02) as place:
        before = lock_of(output)
        place.start_beating()
        wait_until(lambda: lock_of(output)["beat"] >= 3)
        after = lock_of(output)
        assert {**after, "beat": 0, "seen": before["seen"]} == before
        assert not place.lost


def test_a_run_whose_place_was_taken_notices_and_leaves_it_alone(output, caplog):
    caplog.set_level(logging.WARNING, "beamtag")
    place = take(output, "first", beat_s=0.02)
    theirs = change_lock(output, run_id="second")
    place.start_beating()
    wait_until(lambda: place.lost)
    place.tidied()
    place.release()
    assert read_object(lock_url(output)) == theirs
    assert "this run's place was taken by another" in caplog.text


def test_a_lock_that_somebody_removed_is_not_written_again(local):
    with take(local, "first", beat_s=0.02) as place:
        os.unlink(lock_url(local))
        place.start_beating()
        wait_until(lambda: place.lost)
        assert os.listdir(local) == []


def test_after_release_nothing_beats(local):
    place = take(local, "first", beat_s=0.001)
    place.start_beating()
    wait_until(lambda: lock_of(local)["beat"] > 0)
    place.release()
    place.tidied()
    time.sleep(0.05)
    assert os.listdir(local) == []
    place.release()


def test_a_store_that_fails_for_a_while_is_asked_again(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "beamtag")
    (tmp_path / "disk").mkdir()
    (tmp_path / "broken").write_bytes(b"")
    output = tmp_path / "out"

    def point_at(name: str) -> None:
        (tmp_path / "link").symlink_to(name)
        (tmp_path / "link").replace(output)

    point_at("disk")
    with take(str(output), "first", beat_s=0.02) as place:
        place.start_beating()
        point_at("broken")
        wait_until(lambda: "its lock was not renewed: NotADirectoryError" in caplog.text)
        point_at("disk")
        beat = lock_of(str(output))["beat"]
        wait_until(lambda: lock_of(str(output))["beat"] > beat)
        assert not place.lost
        point_at("broken")
    assert "its lock cannot be removed: NotADirectoryError" in caplog.text


def test_a_thread_that_beats_does_not_keep_the_process(local):
    with holder(local, "first", seconds=0) as process:
        assert process.wait(10) == 0
    assert lock_of(local)["run_id"] == "first"
    with take(local, "second") as place:
        assert place.dead == ("first",)


def test_a_forked_process_does_not_give_the_place_back(local):
    with take(local, "first") as place:
        child = os.fork()
        if child == 0:
            place.tidied()
            place.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert lock_of(local)["beat"] == 0
        check_place(local, "first")


# Stores that differ from those above.


class Gate(BaseHTTPRequestHandler):
    """Passes requests on to a store's server, one at a time, and judges their conditions first."""

    # Clients of S3 send a body only when they are told to go on.
    protocol_version = "HTTP/1.1"
    upstream: ClassVar[str]
    one_at_a_time: ClassVar[threading.Lock]
    seen: ClassVar[list[tuple[str, int]]]

    def judge(self) -> int | None:
        """The status to answer with instead of asking the store."""

    def spoil(self) -> bool:
        """Whether the store's answer gets lost."""
        return False

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.one_at_a_time:
            status, headers, content = self.judge(), {}, b""
            if status is None:
                status, headers, content = self.ask(self.command, self.path, body)
        if self.spoil():
            status, content = 503, b""
        self.seen.append((self.command, status))
        self.send_response(status)
        for name in ("Content-Type", "ETag", "x-goog-generation"):
            if name in headers:
                self.send_header(name, headers[name])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request  # noqa: N815

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=10)
        with contextlib.closing(connection):
            passed = {
                name: value for name, value in self.headers.items()
                if name.lower() not in ("connection", "accept-encoding", "content-length", "expect")
            }  # fmt: skip
            connection.request(method, path, body, passed)
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def log_message(self, *args: object) -> None:
        pass


class StrictGcs(Gate):
    """What the emulator lacks: it compares generations, and tells them with the content."""

    lost_answers: ClassVar[list[str]]

    def judge(self) -> int | None:
        wanted = parse_qs(urlsplit(self.path).query).get("ifGenerationMatch")
        if wanted is None:
            return 428 if self.command in ("POST", "DELETE") else None
        return None if wanted == [self.generation()] else 412

    def generation(self) -> str:
        url = f"/storage/v1/b/shelf/o/{quote(self.server.name, safe='')}"
        status, _, content = self.ask("GET", url)
        return json.loads(content)["generation"] if status == 200 else "0"

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        status, headers, content = super().ask(method, path, body)
        if "alt=media" in path and status == 200:
            headers["x-goog-generation"] = self.generation()
        return status, headers, content

    def spoil(self) -> bool:
        if self.command in self.lost_answers:
            self.lost_answers.remove(self.command)
            return True
        return False


class NoConditions(Gate):
    """A store of S3's kind that has not learnt what If-Match is for writing."""

    def judge(self) -> int | None:
        conditional = self.headers.get("If-Match") or self.headers.get("If-None-Match")
        return 501 if conditional else None


@contextlib.contextmanager
def gate(kind: type[Gate], scheme: str, output: str) -> Iterator[type[Gate]]:
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[scheme]
    state = {
        "upstream": os.environ[variable], "one_at_a_time": threading.Lock(), "seen": [],
        "lost_answers": [],
    }  # fmt: skip
    handler = type(kind.__name__, (kind,), state)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.name = lock_url(output).removeprefix(f"{scheme}://shelf/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_storage_options(
            {scheme: {"endpoint_url": f"http://127.0.0.1:{server.server_address[1]}"}}
        )
        try:
            yield handler
        finally:
            use_storage_options({})
            server.shutdown()


def test_gcs_decides_by_generations():
    output = "gs://shelf/strict"
    with gate(StrictGcs, "gs", output) as strict:
        for _ in range(3):
            # With no settling: the store alone decides.
            places = [found for found in race(output) if isinstance(found, runlock.Place)]
            (winner,) = places
            winner.tidied()
            assert lock_of(output)["beat"] == 1
            assert strict.seen.count(("POST", 200)) == 2
            with take(output, "after", take_over=True) as after:
                winner.release()
                check_place(output, "after")
                stale = after._object.read()
                after.tidied()
                assert not after._object.put(b"late", stale)
                assert not after._object.remove(stale)
                assert not after._object.put(b"late", None)
            assert ("DELETE", 412) in strict.seen
            strict.seen.clear()


def test_an_answer_that_gets_lost_does_not_lose_the_place():
    output = "gs://shelf/lossy"
    with gate(StrictGcs, "gs", output) as lossy:
        lossy.lost_answers.append("POST")
        with take(output, "first") as place:
            # The client has asked again, and was told that there is a lock already: its own.
            assert [said for said in lossy.seen if said[0] == "POST"] == [
                ("POST", 503), ("POST", 412),
            ]  # fmt: skip
            check_place(output, "first")
            assert not place.lost


def test_s3_decides_by_etags():
    output = "s3://shelf/strict"
    with take(output, "first") as place:
        stale = place._object.read()
        place.tidied()
        assert not place._object.put(b"late", stale)
        assert not place._object.remove(stale)
        assert not place._object.put(b"late", None)
        check_place(output, "first")


def test_a_store_without_conditions_is_read_back():
    output = "s3://shelf/plain"
    with gate(NoConditions, "s3", output) as plain:
        with take(output, "first") as place:
            place.tidied()
            assert lock_of(output)["beat"] == 1
            with pytest.raises(HeldError):
                take(output, "second")
        assert ("PUT", 501) in plain.seen
        with pytest.raises(LostPlaceError, match="gone"):
            check_place(output, "first")


def test_a_rival_that_wrote_over_the_lock_has_the_place():
    output = "memory://shelf/rival"
    filesystem, path = locate(lock_url(output))

    def overwrite() -> None:
        wait_until(lambda: filesystem.exists(path))
        change_lock(output, run_id="rival")

    rival = threading.Thread(target=overwrite)
    rival.start()
    with pytest.raises(HeldError, match="run rival"):
        take(output, "first", settle_s=0.5)
    rival.join()


def test_a_file_system_without_links_and_guards(local, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("fcntl.flock", refuse)
    with take(local, "first", beat_s=0.02) as place:
        with pytest.raises(HeldError):
            take(local, "second")
        place.start_beating()
        wait_until(lambda: lock_of(local)["beat"] > 0)
        with take(local, "third", take_over=True, settle_s=0.2):
            check_place(local, "third")
            wait_until(lambda: place.lost)
    assert os.listdir(local) == []
