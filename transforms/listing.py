"""ListMedia, ListManifests, ListTars: inputs to references; GroupIntoShards: those to shards."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from glob import has_magic
from typing import Any

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from transforms import names
from transforms.browsing import files_matching, files_under
from transforms.buckets import Entry
from transforms.manifests import ReadManifests
from transforms.progress import progress
from transforms.records import Input, InputKind, MediaRef, Selection, Shard
from transforms.storage import StorageOptions, locate, use_storage_options, version_of

EXTENSIONS: dict[InputKind, tuple[str, ...]] = {
    "media": names.PICTURES,
    "manifest": names.MANIFESTS,
    "tar": names.TARS,
}
"""What a folder is searched for; a glob takes whatever it names."""


@dataclass
class ListMedia(beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[MediaRef]]):
    """Folders, globs and single objects, several of them as one element, to references.

    An object that several of them name is one item.
    """

    selection: Selection
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[MediaRef]:
        """Wire the listing."""
        refs: beam.PCollection[MediaRef] = (
            pcoll
            | "ListObjects"
            >> beam.FlatMap(list_inputs, "media", self.selection, self.storage_options)
            | "DropRepeated" >> beam.ParDo(_DropRepeated())
        )
        return refs


@dataclass
class ListManifests(
    beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[MediaRef]]
):
    """Manifests, several inputs as one element, to the references that are their rows.

    Rows that say the same are one item.
    """

    selection: Selection
    carry: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[MediaRef]:
        """Wire finding and reading them."""
        refs: beam.PCollection[MediaRef] = (
            pcoll
            | "ListObjects"
            >> beam.FlatMap(list_inputs, "manifest", self.selection, self.storage_options)
            | "ManifestUrls" >> beam.Map(lambda ref: ref.uri)
            | "ReadManifests" >> ReadManifests(self.carry, self.storage_options)
            | "DropRepeated" >> beam.ParDo(_DropRepeated())
        )
        return refs


@dataclass
class ListTars(beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[Shard]]):
    """Tars, several inputs as one element, to shards: one for each, read as a whole."""

    selection: Selection
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[Shard]:
        """Wire the listing."""
        shards: beam.PCollection[Shard] = (
            pcoll
            | "ListObjects"
            >> beam.FlatMap(list_inputs, "tar", self.selection, self.storage_options)
            | "TarShards" >> beam.Map(lambda ref: Shard(make_shard([ref]).shard_id, (ref,), True))
        )
        return shards


class _DropRepeated(beam.DoFn):
    """A DoFn for what it has seen in a bundle: digests, in a file that sqlite keeps aside.

    An archive has millions of names; in a Python set their digests alone took 100 MB a million.
    """

    def __init__(self) -> None:
        self._seen: sqlite3.Connection

    def start_bundle(self) -> None:
        self._seen = sqlite3.connect("", check_same_thread=False)
        self._seen.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32768;"
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
        )

    def process(self, ref: MediaRef) -> Iterator[MediaRef]:
        key = "\0".join((ref.uri, ref.version, ref.id or ""))
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        if self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount:
            progress.add(listed=1)
            yield ref

    def finish_bundle(self) -> None:
        self._seen.close()


def input_exists(url: str) -> bool:
    """Whether there is something to list: the object or folder, or the one a glob starts in."""
    filesystem, path = locate(url)
    if filesystem.exists(path):
        return True
    if not has_magic(path):
        return False
    start = _fixed_part(path)
    return not start or bool(filesystem.exists(start))


def list_inputs(
    inputs: Iterable[Input],
    kind: InputKind,
    selection: Selection,
    storage_options: StorageOptions | None = None,
) -> Iterator[MediaRef]:
    """References of those of the inputs that are of this kind, one after the other."""
    use_storage_options(storage_options or {})
    for url in (given.url for given in inputs if given.kind == kind):
        yield from list_media(url, kind, selection)


def list_media(
    url: str, kind: InputKind = "media", selection: Selection | None = None
) -> Iterator[MediaRef]:
    """References under a folder (by their extension), of a glob, or of one object.

    A name that exists is meant literally, whatever characters it has. Links to files are
    followed, links to folders inside the input are not. Raises OSError.
    """
    selection = selection or Selection()
    filesystem, path = locate(url)
    extensions = selection.extensions if kind == "media" else None
    entries: Iterable[Entry]
    if filesystem.isfile(path):
        details = filesystem.info(path)
        entries = [Entry(path, version_of(details), details.get("size"))]
        start = path.rpartition("/")[0]
    elif filesystem.isdir(path):
        entries = files_under(filesystem, path)
        extensions = extensions or EXTENSIONS[kind]
        start = path
    else:
        entries = files_matching(filesystem, path)
        start = _fixed_part(path)
    wanted = _wanted(selection, extensions, len(start.rstrip("/")) + 1 if start else 0)
    for entry in entries:
        if wanted(entry.name):
            yield MediaRef(_uri(filesystem, entry.name), entry.version, entry.size)


def _fixed_part(pattern: str) -> str:
    """The folder that a glob starts in."""
    while has_magic(pattern):
        pattern = pattern.rpartition("/")[0]
    return pattern


def _wanted(
    selection: Selection, extensions: tuple[str, ...] | None, skip: int
) -> Callable[[str], bool]:
    """Whether a name, from its character `skip` on, is one that was asked for."""
    includes = _matcher(selection.include)
    excludes = _matcher(selection.exclude)

    def wanted(name: str) -> bool:
        if extensions is not None and not name.lower().endswith(extensions):
            return False
        below = name[skip:]
        return (includes is None or includes(below)) and not (excludes and excludes(below))

    return wanted


def _matcher(globs: tuple[str, ...]) -> Callable[[str], bool] | None:
    if not globs:
        return None
    either = "|".join(
        # A name matches at any depth.
        glob_translate(glob.lstrip("/") if "/" in glob else f"**/{glob}")
        for glob in globs
    )
    matches = re.compile(either).match
    return lambda below: matches(below) is not None


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
