"""Real stores on loopback, speaking the real protocols, started and stopped by the tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import fsspec
import pytest

START_TIMEOUT_S = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _listens(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _serving(
    command: list[str], url: str, answers: Callable[[str], bool] = _answers
) -> Iterator[str]:
    """A server's process, once it answers; gives its URL."""
    # Into a file: a pipe that nobody reads is full after some hundred lines of an access log, and
    # then the server waits for ever.
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    said.seek(0)
                    raise RuntimeError(f"{command} did not start: {said.read()}")
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _serving(command, f"http://127.0.0.1:{port}") as url:
        yield url


@contextlib.contextmanager
def gcs_server() -> Iterator[str]:
    """gcp-storage-emulator's GCS server, in memory."""
    port = free_port()
    command = [
        sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory",
        "--host=127.0.0.1", f"--port={port}",
    ]  # fmt: skip
    with _serving(command, f"http://127.0.0.1:{port}") as url:
        yield url


@contextlib.contextmanager
def milvus_server(folder: str) -> Iterator[str]:
    """milvus-lite's server, over gRPC as Milvus itself."""
    port = free_port()
    command = [
        sys.executable, "-m", "milvus_lite", "server", f"--data-dir={folder}", f"--port={port}",
    ]  # fmt: skip
    with _serving(command, f"http://127.0.0.1:{port}", _listens) as url:
        yield url


# gcsfs reads the last when it is imported: or each first call to a bucket waits a minute on gRPC,
# which the emulator has not.
CLIENTS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
"""The environment of clients of these servers, but for their addresses."""


@contextlib.contextmanager
def both_stores(*buckets: str) -> Iterator[None]:
    """Both servers with these buckets, and an environment in which `s3://` and `gs://` are they."""
    with s3_server() as s3, gcs_server() as gcs, pytest.MonkeyPatch.context() as environment:
        addresses = {"AWS_ENDPOINT_URL": s3, "STORAGE_EMULATOR_HOST": gcs}
        for name, value in {**CLIENTS, **addresses}.items():
            environment.setenv(name, value)
        for scheme in ("s3", "gs"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
            for bucket in buckets:
                fsspec.filesystem(scheme).mkdir(bucket)
        yield
        for scheme in ("s3", "gs"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
