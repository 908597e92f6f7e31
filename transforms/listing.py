"""ListMedia, ListManifests, ListTars: inputs to references; GroupIntoShards: those to shards."""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from glob import has_magic
from typing import Any

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue
from fsspec.implementations.local import LocalFileSystem

from transforms import names
from transforms.browsing import bucket_of, files_matching, files_under
from transforms.buckets import Entry
from transforms.manifests import ReadManifests
from transforms.records import Input, InputKind, MediaRef, Reason, Selection, Shard
from transforms.selecting import selector
from transforms.storage import StorageOptions, locate, prefix_of, use_storage_options, version_of
from transforms.storeerrors import reason_of
from transforms.tabletext import printable

EXTENSIONS: dict[InputKind, tuple[str, ...]] = {
    "media": names.PICTURES,
    "manifest": names.MANIFESTS,
    "tar": names.TARS,
}
"""What a folder is searched for; a glob takes whatever it names."""


@dataclass
class ListMedia(beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[MediaRef]]):
    """Folders, globs and single objects, several of them as one element, to references."""

    selection: Selection
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[MediaRef]:
        """Wire the listing."""
        refs: beam.PCollection[MediaRef] = pcoll | "ListObjects" >> beam.FlatMap(
            list_inputs, "media", self.selection, self.storage_options
        )
        return refs


@dataclass
class ListManifests(
    beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[MediaRef]]
):
    """Manifests, several inputs as one element, to the references that are their rows."""

    carry: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[MediaRef]:
        """Wire finding and reading them."""
        refs: beam.PCollection[MediaRef] = (
            pcoll
            | "ListObjects"
            >> beam.FlatMap(list_inputs, "manifest", storage_options=self.storage_options)
            | "ManifestUrls" >> beam.Map(lambda ref: ref.uri)
            | "ReadManifests" >> ReadManifests(self.carry, self.storage_options)
        )
        return refs


@dataclass
class ListTars(beam.PTransform[beam.PCollection[tuple[Input, ...]], beam.PCollection[Shard]]):
    """Tars, several inputs as one element, to shards: one for each, read as a whole.

    A tar that several of them name is one shard. `branch` is as in `GroupIntoShards`.
    """

    branch: str = ""
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[tuple[Input, ...]]) -> beam.PCollection[Shard]:
        """Wire the listing."""
        shards: beam.PCollection[Shard] = (
            pcoll
            | "ListObjects" >> beam.FlatMap(_list_tars, self.storage_options)
            | "TarShards" >> beam.Map(_tar_shard, self.branch)
        )
        return shards


def _list_tars(inputs: Iterable[Input], storage_options: StorageOptions) -> Iterator[MediaRef]:
    # Tars are few: their names are kept.
    return iter(dict.fromkeys(list_inputs(inputs, "tar", storage_options=storage_options)))


def _tar_shard(tar: MediaRef, branch: str) -> Shard:
    return Shard(make_shard([tar], branch).shard_id, (tar,), tar=True)


def input_exists(url: str) -> bool:
    """Whether there is something to list: the object or folder, or the one a glob starts in.

    Raises what the store raises when it does not tell, and ValueError or FileNotFoundError for a
    glob that cannot be.
    """
    filesystem, path = locate(url)
    if _details(filesystem, path):
        return True
    if not has_magic(path):
        return False
    # Nothing is asked for until the first entry is: this only tells whether it is a glob.
    files_matching(filesystem, path)
    start = _fixed_part(path)
    return not start or bool(_details(filesystem, start))


def _details(filesystem: Any, path: str) -> dict[str, Any]:
    """What fsspec's `info` tells of a file or folder; empty where there is none.

    Not by fsspec's `exists`, `isfile` and `isdir`: for those a store that is down or does not know
    who asks is a store without such an object.
    """
    try:
        bucket = bucket_of(filesystem, path)
        if bucket and "/" not in path.rstrip("/"):
            # Whoever may read objects may list them, but not always look at the bucket.
            next(iter(bucket.level(f"{path.rstrip('/')}/")), None)
            return {"type": "directory"}
        return dict(filesystem.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        # The web's client says so whatever happened, and keeps what did as the cause.
        cause = error.__cause__
        if isinstance(cause, Exception) and reason_of(cause) is not Reason.NOT_FOUND:
            raise cause from None
        return {}
    except OSError as error:
        # A glob may be longer than names may be.
        if error.errno == errno.ENAMETOOLONG and has_magic(path):
            return {}
        raise


def list_inputs(
    inputs: Iterable[Input],
    kind: InputKind,
    selection: Selection | None = None,
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

    A name that exists is meant literally, whatever characters it has, and is taken whatever the
    selection. Links to files are followed, links to folders inside the input are not. Raises
    OSError and what the store's client raises.
    """
    selection = selection or Selection()
    filesystem, path = locate(url)
    to_uri = partial(_uri, filesystem, prefix_of(url, filesystem, path))
    details = _details(filesystem, path)
    place = details.get("type")
    if place == "file":
        yield MediaRef(to_uri(path), version_of(details), details.get("size"))
        return
    extensions = selection.extensions
    entries: Iterable[Entry]
    if place == "directory":
        entries = files_under(filesystem, path)
        extensions = extensions or EXTENSIONS[kind]
        start = path
    else:
        entries = files_matching(filesystem, path)
        start = _fixed_part(path)
    wanted = selector(selection, extensions, len(start.rstrip("/")) + 1 if start else 0)
    for entry in entries:
        if wanted(entry.name):
            yield MediaRef(to_uri(entry.name), entry.version, entry.size)


def _fixed_part(pattern: str) -> str:
    """The folder that a glob starts in."""
    while has_magic(pattern):
        pattern = pattern.rpartition("/")[0]
    return pattern


def _uri(filesystem: Any, prefix: str | None, name: str) -> str:
    # A local path stays as people type it; elsewhere a name without its store means nothing.
    if isinstance(filesystem, LocalFileSystem):
        uri = name
    elif prefix is not None:
        uri = f"{prefix.removesuffix('/')}/{name.removeprefix('/')}"
    else:
        uri = filesystem.unstrip_protocol(name)
    # A name of other bytes than UTF-8 ends as a failure.
    return printable(uri)


@dataclass
class GroupIntoShards(beam.PTransform[beam.PCollection[MediaRef], beam.PCollection[Shard]]):
    """References to shards of up to `size`, each named by what is in it and by `branch`.

    What is done in another way, such as by another model, must not overwrite it. Where only
    reading tells an item's version, reading may find it done: such a shard has the `run_id` in its
    name too, or a second run that leaves it out would overwrite the first one's. So has one whose
    name is `taken`, by an earlier run to which all of it failed, or before all of it was pruned:
    what that run wrote for another label set would pass for this one's.
    """

    size: int
    branch: str = ""
    run_id: str = ""
    taken: frozenset[str] = frozenset()

    def expand(self, pcoll: beam.PCollection[MediaRef]) -> beam.PCollection[Shard]:
        """Wire the grouping."""
        shards: beam.PCollection[Shard] = pcoll | "FillShards" >> beam.ParDo(
            _FillShards(self.size, self.branch, self.run_id, self.taken)
        )
        return shards


@dataclass
class CutShards(beam.PTransform[beam.PCollection[Shard], beam.PCollection[Shard]]):
    """Shards to smaller ones where they are so few that not each of some workers had `EACH`.

    Those are named by what is in them and `named_by`, as `GroupIntoShards` does it. Tars are whole.
    """

    workers: int
    named_by: tuple[Any, ...] = ()

    def expand(self, pcoll: beam.PCollection[Shard]) -> beam.PCollection[Shard]:
        """Wire the count."""
        count = pcoll | "CountWhole" >> beam.combiners.Count.Globally()
        cut: beam.PCollection[Shard] = pcoll | "CutShard" >> beam.FlatMap(
            cut_shard, beam.pvalue.AsSingleton(count), self.workers, *self.named_by
        )
        return cut


EACH = 4
"""How many shards a worker has at the least: the last of them is what others wait for."""

SMALLEST = 256
"""Items of which no smaller shards are made: a file each, in every table."""


def cut_shard(shard: Shard, shards: int, workers: int, *named_by: Any) -> Iterator[Shard]:
    """A shard, one of so many, in as many parts as give each worker `EACH`."""
    count = len(shard.refs)
    parts = min(math.ceil(EACH * workers / shards), count // SMALLEST)
    if parts < 2:
        yield shard
        return
    for part in range(parts):
        begin, end = (count * place // parts for place in (part, part + 1))
        yield make_shard(shard.refs[begin:end], *named_by)


class _FillShards(beam.DoFn):
    """A DoFn for the references that wait until a shard is full."""

    def __init__(self, size: int, *named_by: Any) -> None:
        self._size = size
        self._named_by = named_by

    def start_bundle(self) -> None:
        self._waiting: dict[Any, list[MediaRef]] = {}

    def process(self, ref: MediaRef, window: Any = beam.DoFn.WindowParam) -> Iterator[Shard]:
        refs = self._waiting.setdefault(window, [])
        refs.append(ref)
        if len(refs) == self._size:
            yield make_shard(self._waiting.pop(window), *self._named_by)

    def finish_bundle(self) -> Iterator[Any]:
        for window, refs in self._waiting.items():
            shard = make_shard(refs, *self._named_by)
            yield WindowedValue(shard, window.max_timestamp(), (window,))


def make_shard(
    refs: Iterable[MediaRef],
    branch: str = "",
    run_id: str = "",
    taken: frozenset[str] = frozenset(),
) -> Shard:
    """A shard of these references, named by a hash of `branch` and of all they tell, in order."""
    refs = tuple(refs)
    digest = hashlib.sha256(branch.encode())
    if any(ref.version_unknown for ref in refs):
        digest.update(run_id.encode())
    for ref in refs:
        digest.update(_told(ref))
    if digest.hexdigest()[:16] in taken:
        digest.update(run_id.encode())
    return Shard(digest.hexdigest()[:16], refs)


_PLAIN = MediaRef("", "")[3:]


def _told(ref: MediaRef) -> bytes:
    """What tells one reference from another: all but the size, which is the version's."""
    told = f"{ref.uri}\0{ref.version}\0".encode()
    # An object as it was listed has no more, and there are millions of them.
    return told if ref[3:] == _PLAIN else told + repr(ref[3:-1]).encode()
