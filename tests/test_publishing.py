from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from faulty import Faulty, faulty_server
from servers import CLIENTS, gcs_server, s3_server

from transforms import publishing
from transforms.publishing import Aside, PublishError, asides, publish, tidy

ASIDE = re.compile(r"\.shard-1\.parquet\.run-7\.[0-9a-f]{8}\.aside")
DAY_S = 24 * 3600
KINDS = ("503", "500", "429", "408", "reset", "cut")
VARIABLES = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
UPLOADS = {"s3": None, "gs": "/upload/"}


def python(script: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, with `publish` at hand."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=60, **options
    )


# Local disks.


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "embeddings" / "model=m" / "dt=2026-01-31" / "shard-1.parquet"


def test_a_reader_sees_the_old_file_or_the_new_one(target):
    old, new = b"old" * 100_000, b"new" * 100_000
    publish(str(target), old)
    stop = threading.Event()

    def look() -> set[bytes]:
        seen = set()
        while not stop.is_set():
            seen.add(target.read_bytes())
        return seen

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for content in [new, old] * 50:
                publish(str(target), content, "run-7")
        finally:
            stop.set()
        # A moment without the file would have ended the reader with FileNotFoundError.
        assert looking.result() == {old, new}
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("kind", [bytes, memoryview, pa.py_buffer])
@pytest.mark.parametrize("store", ["", "file://", "memory://"])
def test_any_kind_of_content_anywhere(target, kind, store):
    publish(f"{store}{target}", kind(b"content"), "run-7")
    assert fsspec.filesystem(store.partition(":")[0] or "file").cat_file(str(target)) == b"content"


def test_what_is_written_has_reached_the_disk_before_it_has_its_name(target):
    """And so has the name, with those of the folders made for it, before `publish` is back."""
    folder = target.parents[4]
    found = python(
        """
        import os, sys
        from transforms.publishing import publish

        order, sync = [], os.fsync
        def told(descriptor):
            sync(descriptor)
            order.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        os.fsync = told
        sys.addaudithook(lambda event, told: order.append("rename") if event == "os.rename" else 0)
        publish(sys.argv[1], b"content", "run-7")
        print(*order, sep="\\n")
        """,
        target,
    )
    assert found.returncode == 0, found.stderr
    *made, aside, rename, last = found.stdout.splitlines()
    made_here = [target.parents[depth] for depth in (1, 2, 3, 4)]
    assert sorted(made) == sorted(map(str, made_here))
    assert str(folder) in made
    assert ASIDE.fullmatch(Path(aside).name)
    assert (rename, last) == ("rename", str(target.parent))


def test_a_name_that_is_taken_by_a_folder(target):
    target.mkdir(parents=True)
    with pytest.raises(PublishError, match=f"^cannot write {target}: Is a directory$"):
        publish(str(target), b"content", "run-7")
    assert os.listdir(target.parent) == [target.name]


def test_a_file_where_a_folder_should_be(target):
    output = target.parents[3]
    output.write_bytes(b"")
    for path in (target, output / "runs"):
        line = f"cannot write {path}: Not a directory ({output})"
        with pytest.raises(PublishError, match=f"^{re.escape(line)}$"):
            publish(str(path), b"content")
    assert output.read_bytes() == b""
    output.unlink()
    output.symlink_to("nowhere")
    line = f"cannot write {output}/r.json: File exists ({output})"
    with pytest.raises(PublishError, match=f"^{re.escape(line)}$"):
        publish(f"{output}/r.json", b"content")


REFUSED = """
    import os, sys
    from transforms.publishing import publish
    if os.geteuid() == 0:
        os.setgroups([])
        os.setuid(65534)  # nobody: to root, modes of folders mean nothing
    publish(sys.argv[1], b"content", "run-7")
"""


def test_a_folder_that_may_only_be_read():
    with tempfile.TemporaryDirectory(prefix="beamtag-test-") as place:
        os.chmod(place, 0o555)
        found = python(REFUSED, f"{place}/shard-1.parquet")
        assert found.returncode == 1
        last = found.stderr.splitlines()[-1]
        assert last.endswith(
            f"PublishError: cannot write {place}/shard-1.parquet: Permission denied"
        )
        found = python(REFUSED, f"{place}/runs/r.json")
        last = found.stderr.splitlines()[-1]
        assert last.endswith(f"write {place}/runs/r.json: Permission denied ({place}/runs)")
        assert os.listdir(place) == []


SMALL = """
    import resource, sys
    from transforms.publishing import PublishError, publish
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    publish(sys.argv[1], b"old" * 50_000)
    try:
        publish(sys.argv[1], b"new" * 500_000, "run-7")
    except PublishError as error:
        print(error)
    import os
    print(os.listdir(os.path.dirname(sys.argv[1])))
    print(open(sys.argv[1], "rb").read() == b"old" * 50_000)
"""


def mounted(kind: str, folder: Path) -> list[str]:
    """A command that runs another with this file system at `folder`, which nobody else sees."""
    return [
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
        f'mount -t tmpfs -o {kind} tmpfs "$0" && exec "$@"', str(folder),
    ]  # fmt: skip


def namespaces(folder: Path) -> bool:
    """Whether this machine lets its users mount."""
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run([*mounted("size=1m", folder), "true"], check=False).returncode == 0
    return False


def test_a_disk_that_fills_up(tmp_path):
    """A real full disk where one can be mounted; else the limit on the length of a file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    path = folder / "shard-1.parquet"
    small = namespaces(folder)
    command = mounted("size=1m", folder) if small else []
    command += [
        sys.executable,
        "-c",
        textwrap.dedent(SMALL),
        str(path),
        "disk" if small else "limit",
    ]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    found = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [
        f"cannot write {path}: {os.strerror(errno.ENOSPC if small else errno.EFBIG)}",
        "['shard-1.parquet']",
        "True",
    ]


def test_a_disk_that_may_only_be_read(tmp_path):
    """Real where one can be mounted; else Linux's own read-only folder, which refuses otherwise."""
    folder = tmp_path / "disk"
    folder.mkdir()
    real = namespaces(folder)
    path = folder / "shard-1.parquet" if real else Path("/proc/self/shard-1.parquet")
    command = mounted("ro", folder) if real else []
    script = "import sys; from transforms.publishing import publish; publish(sys.argv[1], b'')"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    found = subprocess.run(
        [*command, sys.executable, "-c", script, str(path)],
        env=environment, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    said = os.strerror(errno.EROFS if real else errno.ENOENT)
    last = found.stderr.splitlines()[-1]
    assert last == f"transforms.publishing.PublishError: cannot write {path}: {said}"


def test_a_file_longer_than_files_may_be(tmp_path):
    path = tmp_path / "shard-1.parquet"
    found = python(SMALL, path, "limit")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [
        f"cannot write {path}: File too large", "['shard-1.parquet']", "True",
    ]  # fmt: skip


def test_a_run_that_is_killed_leaves_what_the_next_removes(target):
    publish(str(target), b"old" * 1000)
    found = python(
        """
        import os, signal, sys
        from transforms.publishing import publish

        def kill(event, told):
            if event == "os.rename":
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        publish(sys.argv[1], b"new" * 1000, "run-7")
        """,
        target,
    )
    assert found.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old" * 1000
    output = str(target.parents[3])
    [left] = asides(output)
    assert ASIDE.fullmatch(Path(left.path).name)
    assert (left.run_id, os.path.dirname(left.path)) == ("run-7", str(target.parent))
    assert abs(left.modified - time.time()) < 60
    # No reader's pattern takes it for a file of the table.
    assert [*target.parent.glob("*.parquet")] == [target]
    assert tidy(output, {"run-6"}) == 0
    assert [*asides(output)] == [left]
    assert tidy(output, {"run-6", "run-7"}) == 1
    assert os.listdir(target.parent) == [target.name]


def test_a_run_that_is_killed_at_any_moment(target):
    """A writer of long files, killed as it writes, twenty times: never a part of one is seen."""
    contents = {letter * 3_000_000 for letter in (b"a", b"b")}
    script = textwrap.dedent(
        """
        import os, sys
        from transforms.publishing import publish
        for line in sys.stdin:
            if os.fork() == 0:
                os.setpgid(0, 0)
                print(os.getpid(), flush=True)
                while True:
                    for letter in (b"a", b"b"):
                        publish(sys.argv[1], letter * 3_000_000, "run-7")
            os.wait()
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    left = 0
    with subprocess.Popen(
        [sys.executable, "-c", script, str(target)],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdin
        assert parent.stdout
        for number in range(20):
            print(file=parent.stdin, flush=True)
            victim = int(parent.stdout.readline())
            while not target.exists():
                time.sleep(0.001)
            time.sleep(0.003 * number)
            os.kill(victim, signal.SIGKILL)
            assert target.read_bytes() in contents
        parent.stdin.close()
    assert parent.returncode == 0
    output = str(target.parents[3])
    left = len([*asides(output)])
    assert left >= 1
    assert tidy(output, ["run-7"]) == left
    assert os.listdir(target.parent) == [target.name]


# What is left aside.


def leave(path: Path, age_s: float = 0.0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age_s,) * 2)
    return str(path)


def test_only_our_own_kind_is_found_and_only_in_the_output(tmp_path):
    name = ".shard-1.parquet.run-7.0123abcd.aside"
    ours = {
        leave(tmp_path / "embeddings" / "model=m" / "dt=1" / name),
        leave(tmp_path / "predictions" / "label_set=l" / "model=m" / "dt=1" / name),
        leave(tmp_path / "failures" / "dt=1" / name),
        leave(tmp_path / "runs" / ".20260131T000000-abc123.json.run-7.0123abcd.aside"),
        leave(tmp_path / name),
    }
    for other in (
        "shard-1.parquet",
        "shard-1.parquet.run-7.0123abcd.aside",
        ".shard-1.parquet.run-7.0123abc.aside",
        ".shard-1.parquet.run-7.0123ABCD.aside",
        ".shard-1.parquet.run-7.0123abcd.aside.bak",
        ".0123abcd.aside",
    ):
        leave(tmp_path / "failures" / "dt=1" / other, 9 * DAY_S)
    leave(tmp_path / "pictures" / "dt=1" / name, 9 * DAY_S)
    (tmp_path / "runs" / name).mkdir()
    (tmp_path / "embeddings" / name).symlink_to(tmp_path / "pictures")
    (tmp_path / "embeddings" / "more").symlink_to(tmp_path / "pictures")
    found = [*asides(f"file://{tmp_path}")]
    assert {aside.path for aside in found} == ours
    assert {aside.run_id for aside in found} == {"run-7"}
    assert len(found) == len(ours)
    before = {path for path in tmp_path.rglob("*") if str(path) not in ours}
    assert tidy(str(tmp_path), {"run-7"}) == len(ours)
    assert {*tmp_path.rglob("*")} == before


def test_what_may_be_in_use_stays(tmp_path):
    names = {
        (run_id, age_s): leave(tmp_path / "runs" / f".r.json.{run_id}.0000000{n}.aside", age_s)
        for n, (run_id, age_s) in enumerate(
            [
                ("dead", 0),
                ("dead", 2 * DAY_S),
                ("alive", DAY_S - 60),
                ("alive", DAY_S + 60),
                ("", 0),
            ]
        )
    }
    assert tidy(str(tmp_path), {"dead"}) == 3
    stays = {names["alive", DAY_S - 60], names["", 0]}
    assert {aside.path for aside in asides(str(tmp_path))} == stays
    assert tidy(str(tmp_path), (), older_than_s=3600) == 1
    assert [aside.run_id for aside in asides(str(tmp_path))] == [""]


def test_several_that_tidy_at_once(tmp_path):
    for number in range(300):
        leave(tmp_path / "failures" / f"dt={number % 7}" / f".s.run.{number:08x}.aside")
    with ThreadPoolExecutor(4) as pool:
        removed = [*pool.map(lambda _: tidy(str(tmp_path), {"run"}), range(4))]
    assert sum(removed) == 300
    assert [*asides(str(tmp_path))] == []


@pytest.mark.parametrize("output", ["/nowhere/at/all", "memory://out", "/dev/null"])
def test_where_nothing_is_left_aside(output):
    fsspec.filesystem("memory").pipe_file("/out/runs/.r.run-7.0123abcd.aside", b"")
    assert [*asides(output)] == []
    assert tidy(output, {"run-7"}, older_than_s=0) == 0


def test_an_aside_is_what_it_says(tmp_path):
    path = leave(tmp_path / "runs" / ".a.b.json.20260131T120000-abc123.89abcdef.aside", 100)
    [found] = asides(str(tmp_path))
    assert found == Aside(path, "20260131T120000-abc123", os.stat(path).st_mtime)


# Object stores.


@pytest.fixture(scope="module")
def emulators() -> Iterator[dict[str, str]]:
    with s3_server() as s3, gcs_server() as gcs, pytest.MonkeyPatch.context() as environment:
        for name, value in {**CLIENTS, VARIABLES["s3"]: s3, VARIABLES["gs"]: gcs}.items():
            environment.setenv(name, value)
        for scheme in VARIABLES:
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
            fsspec.filesystem(scheme).mkdir("bucket")
        yield {"s3": s3, "gs": gcs}
        for scheme in VARIABLES:
            fsspec.get_filesystem_class(scheme).clear_instance_cache()


@contextlib.contextmanager
def behind(emulators: dict[str, str], scheme: str, **faults) -> Iterator[Faulty]:
    """A store whose writes fail as told, for the clients made from now on."""
    kind = fsspec.get_filesystem_class(scheme)
    options = {"methods": ["PUT", "POST", "DELETE"], "only": UPLOADS[scheme], **faults}
    with (
        faulty_server(upstream=emulators[scheme], **options) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv(VARIABLES[scheme], server.url)
        kind.clear_instance_cache()
        yield server
    kind.clear_instance_cache()


@pytest.fixture(scope="module")
def stored(emulators):
    """The content of an object, asked of the store itself; None where there is none."""
    stores = {
        scheme: fsspec.filesystem(scheme, endpoint_url=url, skip_instance_cache=True)
        for scheme, url in emulators.items()
    }

    def read(scheme: str, path: str) -> bytes | None:
        try:
            return stores[scheme].cat_file(path)
        except FileNotFoundError:
            return None

    return read


@pytest.mark.parametrize("scheme", VARIABLES)
def test_a_store_that_fails_two_writes_in_ten(emulators, stored, scheme, monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT_S", 0.02)
    contents = {f"bucket/few/{number}": f"{number} ".encode() * 5000 for number in range(60)}
    with behind(emulators, scheme, faults=0.2, kinds=KINDS) as server:
        with ThreadPoolExecutor(8) as pool:
            urls = [f"{scheme}://{path}" for path in contents]
            assert [*pool.map(publish, urls, contents.values())] == [None] * 60
        counts = server.counts()
    faults = sum(counts["faults"].values())
    assert faults >= 5
    assert len(counts["faults"]) >= 3
    # One request for each, and one more for each fault: the clients make no retries of their own.
    assert counts["requests"] == 60 + faults
    assert {path: stored(scheme, path) for path in contents} == contents


@pytest.mark.parametrize("scheme", VARIABLES)
def test_a_store_that_refuses(emulators, stored, scheme):
    with behind(emulators, scheme, faults=1, kinds=["403"], most=99) as server:
        url = f"{scheme}://bucket/refused"
        started = time.monotonic()
        with pytest.raises(PublishError) as refused:
            publish(url, b"content")
        assert time.monotonic() - started < 5
        assert server.counts()["requests"] == 1
    said = "403 Forbidden, says tests/faulty.py"
    assert str(refused.value) == f"cannot write {url}: the store refuses ({said})"
    assert stored(scheme, "bucket/refused") is None


@pytest.mark.parametrize("scheme", VARIABLES)
def test_a_store_that_goes_on_failing(emulators, scheme, monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT_S", 0.001)
    with behind(emulators, scheme, faults=1, kinds=["503"], most=99) as server:
        url = f"{scheme}://bucket/failing"
        said = "the store answers 503 Service Unavailable, says tests/faulty.py"
        with pytest.raises(PublishError) as failed:
            publish(url, b"content")
        assert str(failed.value) == f"cannot write {url}: {said} (after 8 tries)"
        assert server.counts()["requests"] == server.counts()["faults"]["503"] == 8


@pytest.mark.parametrize("scheme", VARIABLES)
def test_a_write_that_stalls_is_tried_again(emulators, stored, scheme, monkeypatch):
    monkeypatch.setattr(publishing, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(publishing, "TRY_S", 0.5)
    with behind(emulators, scheme, faults=1, kinds=["stall"], most=1) as server:
        publish(f"{scheme}://bucket/stalled", b"content")
        assert server.counts()["faults"] == {"stall": 1}
    assert stored(scheme, "bucket/stalled") == b"content"


def test_a_store_that_never_answers(emulators, monkeypatch):
    monkeypatch.setattr(publishing, "TRY_S", 0.2)
    monkeypatch.setattr(publishing, "PATIENCE_S", 0.3)
    with behind(emulators, "s3", faults=1, kinds=["stall"], most=99):
        started = time.monotonic()
        with pytest.raises(
            PublishError, match=r"^cannot write s3://bucket/never: no answer in time"
        ):
            publish("s3://bucket/never", b"content")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("scheme", VARIABLES)
def test_a_bucket_that_is_not_there(emulators, scheme):
    url = f"{scheme}://nobucket/runs/r.json"
    line = f"^cannot write {url}: the store has no such place \\(404.*\\)$"
    with behind(emulators, scheme) as server:
        with pytest.raises(PublishError, match=line):
            publish(url, b"content")
        assert server.counts()["requests"] == 1


# Above these sizes, the clients' own way is an upload in parts, which stay when it breaks off.
@pytest.mark.parametrize(("scheme", "megabytes"), [("s3", 101), ("gs", 51)])
def test_a_large_file_is_one_request(emulators, scheme, megabytes):
    content = b"0123456789abcdef" * (megabytes * 2**16)
    with behind(emulators, scheme) as server:
        publish(f"{scheme}://bucket/large", content)
        assert server.counts()["requests"] == 1
        store = fsspec.filesystem(scheme)
        assert store.info("bucket/large")["size"] == len(content)
        assert store.cat_file("bucket/large", start=len(content) - 20) == content[-20:]
        store.rm_file("bucket/large")


@pytest.mark.parametrize("scheme", VARIABLES)
def test_names_are_literal_and_what_was_listed_before_is_not_believed(emulators, scheme):
    name = "label_set=a b+c%20&d?é#1/shard-1.parquet"
    with behind(emulators, scheme):
        store = fsspec.filesystem(scheme)
        publish(f"{scheme}://bucket/odd/first", b"1")
        assert store.ls("bucket/odd", detail=False) == ["bucket/odd/first"]
        publish(f"{scheme}://bucket/odd/second", b"2", "run-7")
        found = ["bucket/odd/first", "bucket/odd/second"]
        assert sorted(store.ls("bucket/odd", detail=False)) == found
        publish(f"{scheme}://bucket/odd/{name}", b"3", "run-7")
        assert sorted(store.find("bucket/odd")) == sorted([*found, f"bucket/odd/{name}"])
        assert store.cat_file(f"bucket/odd/{name}") == b"3"


@pytest.mark.parametrize("url", ["nowhere://bucket/key", "github://bucket/key"])
def test_a_store_that_cannot_be_reached_at_all(url):
    with pytest.raises(PublishError, match=f"^cannot write {url}: .+$"):
        publish(url, b"content")
