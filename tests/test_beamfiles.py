from __future__ import annotations

import bz2
import gzip
import io
import os
import subprocess
import sys
from collections.abc import Iterator

import apache_beam as beam
import fsspec
import pytest
from apache_beam.io import fileio
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.plugin import BeamPlugin
from servers import both_stores

from transforms.beamfiles import BROKEN_GZIP, FsspecFiles, beam_path, gunzipped, url_of

NAMES = [
    "a[1].csv", "what?.csv", "été/猫.csv", "deep/er/a b.csv", "hash#percent%20.csv", "x::y.csv",
    "*.csv", " spaces ", "{a,b}.csv",
]  # fmt: skip


def match(url: str) -> list:
    (result,) = FileSystems.match([beam_path(url)])
    return result.metadata_list


def read_all(urls: list[str]) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        found = (
            pipeline
            | beam.Create([beam_path(url) for url in urls])
            | fileio.MatchAll(fileio.EmptyMatchTreatment.DISALLOW)
            | fileio.ReadMatches()
            | beam.Map(lambda file: (url_of(file.metadata.path), file.read()))
        )
        assert_that(found, equal_to([(url, url.encode()) for url in urls]))


def test_local_names_are_literal(tmp_path):
    urls = [f"{tmp_path}/{name}" for name in NAMES]
    for decoy in ["a1.csv", "whatx.csv", "b.csv"]:
        (tmp_path / decoy).write_text("decoy")
    for url in urls:
        os.makedirs(os.path.dirname(url), exist_ok=True)
        with open(url, "wb") as file:
            file.write(url.encode())
    read_all(urls)


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both_stores("lists"):
        yield


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_names_on_a_store_are_literal(stores, scheme):
    urls = [f"{scheme}://lists/{name}" for name in NAMES]
    for url in urls:
        fsspec.filesystem(scheme).pipe_file(url, url.encode())
    read_all(urls)
    (found,) = match(urls[0])
    assert found.size_in_bytes == len(urls[0])
    assert found.last_updated_in_seconds > 1.5e9
    assert match(f"{scheme}://lists/missing.csv") == []
    assert match(f"{scheme}://nobucket-here/missing.csv") == []


def test_what_is_known_of_a_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"uri\n")
    os.utime(path, (7, 7))
    (tmp_path / "link.csv").symlink_to(path)
    for name in ("a.csv", "link.csv"):
        (found,) = match(f"{tmp_path}/{name}")
        assert found.size_in_bytes == 4
    files = FileSystems.get_filesystem(beam_path(str(path)))
    assert isinstance(files, FsspecFiles)
    assert files.last_updated(beam_path(str(path))) == 7
    assert files.size(beam_path(str(path))) == 4
    assert files.checksum(beam_path(str(path))) == "7.0-4"
    assert files.exists(beam_path(str(path)))
    assert files.split(beam_path("gs://b/x/y.csv")) == (beam_path("gs://b/x"), "y.csv")
    assert files.join(beam_path("gs://b/x"), "y.csv") == beam_path("gs://b/x/y.csv")


def test_what_is_no_file(tmp_path):
    files = FsspecFiles(None)
    for url in (f"{tmp_path}/missing.csv", str(tmp_path), "memory://missing.csv"):
        assert match(url) == []
        assert not files.exists(beam_path(url))
        for ask in (files.metadata, files.size, files.last_updated, files.checksum):
            with pytest.raises(BeamIOError):
                ask(beam_path(url))
    with pytest.raises(FileNotFoundError):
        files.open(beam_path(f"{tmp_path}/missing.csv"))
    with pytest.raises(BeamIOError):
        match("nosuchstore://a/b")


def test_compression_goes_by_the_name_unless_told(tmp_path):
    for name, content in [
        ("a.txt", b"plain"), ("b.txt.gz", gzip.compress(b"plain")),
        ("c.txt.bz2", bz2.compress(b"plain")),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        path = beam_path(f"{tmp_path}/{name}")
        with FileSystems.open(path) as file:
            assert file.read(100) == b"plain"
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            assert file.read(100) == content


def test_writing_is_refused():
    files = FsspecFiles(None)
    path = beam_path("memory://x")
    for refused in [
        lambda: files.create(path), lambda: files.mkdirs(path), lambda: files.delete([path]),
        lambda: files.copy([path], [path]), lambda: files.rename([path], [path]),
        lambda: files._list(path),
    ]:  # fmt: skip
        with pytest.raises(NotImplementedError, match="only for reading"):
            refused()


def test_workers_find_it_by_beams_own_means(tmp_path):
    """In a process that has imported nothing of ours but what a worker is told to."""
    (plugin,) = (path for path in BeamPlugin.get_all_plugin_paths() if "Fsspec" in path)
    (tmp_path / "a.txt").write_text("found")
    script = (
        "from apache_beam.runners.worker.sdk_worker_main import _import_beam_plugins as plug\n"
        "from apache_beam.io.filesystems import FileSystems\n"
        f"plug([{plugin!r}])\n"
        f"print(FileSystems.open('fsspec://{tmp_path}/a.txt').read())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "found" in done.stdout, done.stderr


class Dribble(io.RawIOBase):
    """Neither seekable nor generous."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def read(self, size: int = -1) -> bytes:
        part, self._rest = self._rest[: min(size, 7)], self._rest[min(size, 7) :]
        return part


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"plain" * 1000, gzip.compress(b"plain" * 1000),
     gzip.compress(b"two") + gzip.compress(b"members")],
)  # fmt: skip
def test_gzip_is_told_by_its_first_bytes(content):
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    for file in (io.BytesIO(content), Dribble(content)):
        assert gunzipped(file).read() == plain
        assert not file.closed


def test_a_cut_gzip_is_told_of():
    content = gzip.compress(os.urandom(100_000))
    for cut in (2, 11, 5000, len(content) - 1):
        with pytest.raises(BROKEN_GZIP):
            gunzipped(io.BytesIO(content[:cut])).read()
    with pytest.raises(BROKEN_GZIP):
        gunzipped(io.BytesIO(content[:50] + b"xxxx" + content[54:])).read()
