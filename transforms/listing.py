"""ListMedia: patterns and folders to references; GroupIntoShards: references to shards."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import has_magic
from typing import Any

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue
from fsspec.implementations.local import LocalFileSystem

from transforms.progress import progress
from transforms.records import MediaRef, Shard
from transforms.storage import locate, version_of

EXTENSIONS = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .tif .tiff .bmp .avif .jp2 .j2k".split()  # noqa: SIM905
)
"""What a folder's pictures are called; a glob takes whatever it names."""


@dataclass
class ListMedia(beam.PTransform[beam.PCollection[tuple[str, ...]], beam.PCollection[MediaRef]]):
    """Folders, globs and single objects, several of them as one element, to references."""

    def expand(self, pcoll: beam.PCollection[tuple[str, ...]]) -> beam.PCollection[MediaRef]:
        """Wire the listing."""
        refs: beam.PCollection[MediaRef] = pcoll | "ListInputs" >> beam.FlatMap(list_inputs)
        return refs


def input_exists(url: str) -> bool:
    """Whether there is something to list: the object or folder, or the one a glob starts in."""
    filesystem, path = locate(url)
    if filesystem.exists(path):
        return True
    if not has_magic(path):
        return False
    fixed = path
    while has_magic(fixed):
        fixed = fixed.rpartition("/")[0]
    return not fixed or bool(filesystem.exists(fixed))


def list_inputs(urls: Iterable[str]) -> Iterator[MediaRef]:
    """References of every input, each object once, however many of the inputs name it."""
    urls = tuple(dict.fromkeys(urls))
    # Digests, not names, and only where inputs can overlap: an archive has millions of them.
    seen: set[bytes] = set()
    for url in urls:
        for ref in list_media(url):
            if len(urls) > 1:
                digest = hashlib.blake2b(ref.uri.encode(), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            progress.add(listed=1)
            yield ref


def list_media(url: str) -> Iterator[MediaRef]:
    """References under a folder (pictures by their extension), of a glob, or of one object.

    A name that exists is meant literally, whatever characters it has. Links to files are
    followed, links to folders inside the input are not. Raises OSError.
    """
    filesystem, path = locate(url)
    for name, details in _entries(filesystem, path):
        yield MediaRef(
            uri=_uri(filesystem, name), version=version_of(details), size=details.get("size")
        )


def _entries(filesystem: Any, path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    if filesystem.isfile(path):
        yield path, filesystem.info(path)
    elif filesystem.isdir(path):
        for _, _, files in filesystem.walk(path, detail=True, on_error="raise"):
            for _, details in sorted(files.items()):
                if details["name"].lower().endswith(EXTENSIONS) and (file := _file(details)):
                    yield details["name"], file
    else:
        for name, details in sorted(filesystem.glob(path, detail=True).items()):
            if file := _file(details):
                yield name, file


def _file(details: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of a file, or of the one that a local link leads to; None for anything else.

    A pipe or a device with a picture's name would be waited for without end.
    """
    if not details.get("islink"):
        return details if details["type"] == "file" else None
    try:
        target = os.stat(details["name"])
    except OSError:
        return details  # A link that leads nowhere was listed too: it ends as a failure.
    if not stat.S_ISREG(target.st_mode):
        return None
    return {**details, "mtime": target.st_mtime, "size": target.st_size}


def _uri(filesystem: Any, name: str) -> str:
    # A local path stays as people type it; elsewhere a name without its store means nothing.
    uri = name if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(name)
    # Tables hold UTF-8; a name of other bytes is shown by its escapes and ends as a failure.
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass
class GroupIntoShards(beam.PTransform[beam.PCollection[MediaRef], beam.PCollection[Shard]]):
    """References to shards of up to `size`, each named by what is in it."""

    size: int

    def expand(self, pcoll: beam.PCollection[MediaRef]) -> beam.PCollection[Shard]:
        """Wire the grouping."""
        shards: beam.PCollection[Shard] = pcoll | "FillShards" >> beam.ParDo(_FillShards(self.size))
        return shards


class _FillShards(beam.DoFn):
    """A DoFn for the references that wait until a shard is full."""

    def __init__(self, size: int) -> None:
        self._size = size

    def start_bundle(self) -> None:
        self._waiting: dict[Any, list[MediaRef]] = {}

    def process(self, ref: MediaRef, window: Any = beam.DoFn.WindowParam) -> Iterator[Shard]:
        refs = self._waiting.setdefault(window, [])
        refs.append(ref)
        if len(refs) == self._size:
            yield make_shard(self._waiting.pop(window))

    def finish_bundle(self) -> Iterator[Any]:
        for window, refs in self._waiting.items():
            yield WindowedValue(make_shard(refs), window.max_timestamp(), (window,))


def make_shard(refs: Iterable[MediaRef]) -> Shard:
    """A shard of these references, named by a hash of their URIs and versions, in order."""
    refs = tuple(refs)
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.uri}\0{ref.version}\0".encode())
    return Shard(digest.hexdigest()[:16], refs)
