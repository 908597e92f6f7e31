"""The files below a folder or of a glob, as streams: object stores in pages, folders one by one.

Nothing here keeps what it has given, nor lets fsspec keep it: however many objects there are, what
is in memory are the pages read ahead (of a local folder the names in it). A store's listing tells
every object's version, so none is asked for by itself.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from glob import has_magic
from itertools import chain
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from transforms.buckets import AmazonBucket, Bucket, Entry, GoogleBucket, Page, Place
from transforms.storage import version_of, version_of_file


def files_under(filesystem: Any, path: str) -> Iterator[Entry]:
    """All files below a folder or prefix, at any depth, in a fixed order.

    On stores that is the order of their names; of local folders the files come first, by name,
    then the subfolders. Links to files are followed, links to folders, pipes and devices are not;
    objects that stand for a folder (`a/`) are left out. Raises OSError where a folder cannot be
    read, and what the store's client raises.
    """
    place = _place(filesystem, path)
    folder = path if path.endswith("/") else f"{path}/"
    if isinstance(place, _Folders):
        return place.walk(folder, files_first=isinstance(place, _LocalFolders), must_exist=True)
    return (entry for page in place.below(folder) for entry in page)


def files_matching(filesystem: Any, pattern: str) -> Iterator[Entry]:
    """All files that a glob names, in the order of their names.

    `*`, `?` and `[...]` stay within a folder, `**` as a whole component crosses folders. Up to the
    first `**` only folders that the pattern names are read. A folder that is not there has no
    match; a bucket that is not there raises FileNotFoundError. Raises ValueError for a `**` that
    is part of a component, else like `files_under`.
    """
    matches = re.compile(glob_translate(pattern)).match
    components = pattern.split("/")
    last = len(components) - 1
    first = next((i for i, component in enumerate(components) if has_magic(component)), last)
    place = _place(filesystem, pattern)
    if first == 0 and isinstance(place, Bucket):
        raise FileNotFoundError(f"a bucket's name has no wildcards: {pattern}")
    fixed = "".join(f"{component}/" for component in components[:first])
    deep = components.index("**") if "**" in components else None
    while deep is not None and deep > first and components[deep - 1] == "*":
        deep -= 1  # Every folder is wanted: better one listing of all than one of each.
    folders: Iterator[str] = iter([fixed])
    for component in components[first : last if deep is None else deep]:
        folders = _subfolders(place, folders, component)
    if deep is None:
        start = _literal_start(components[last])
        pages = place.together(_files(place.level(folder + start)) for folder in folders)
    elif deep == first:
        pages = place.below(fixed)
    else:
        pages = place.together(place.flat(folder) for folder in folders)
    return (entry for page in pages for entry in page if matches(entry.name))


def _files(pages: Iterator[Page]) -> Iterator[list[Entry]]:
    return (page.files for page in pages)


def _subfolders(place: Place, folders: Iterator[str], component: str) -> Iterator[str]:
    """The folders that one component of a pattern names, in each of the folders."""
    if not has_magic(component):
        return (name for folder in folders if place.enterable(name := f"{folder}{component}/"))
    matches = re.compile(glob_translate(component)).match
    start = _literal_start(component)

    def below(folder: str) -> Iterator[list[str]]:
        for page in place.level(folder + start):
            yield [name for name in page.folders if matches(name[len(folder) : -1])]

    return chain.from_iterable(place.together(below(folder) for folder in folders))


def _literal_start(component: str) -> str:
    return re.split(r"[*?[]", component, maxsplit=1)[0]


def _place(filesystem: Any, path: str) -> Place:
    if isinstance(filesystem, LocalFileSystem):
        return _LocalFolders()
    return bucket_of(filesystem, path) or _ListedFolders(filesystem)


def bucket_of(filesystem: Any, path: str) -> Bucket | None:
    """The bucket that a path is in; None for a filesystem that has none, or is not known here."""
    # By modules that are there already: s3fs need not be installed.
    google, amazon = sys.modules.get("gcsfs.core"), sys.modules.get("s3fs.core")
    if google and isinstance(filesystem, google.GCSFileSystem):
        return GoogleBucket(filesystem, path)
    if amazon and isinstance(filesystem, amazon.S3FileSystem):
        return AmazonBucket(filesystem, path)
    return None


class _Inside(NamedTuple):
    """What is in a folder: names, without a slash, and of files what `_entry` needs to know."""

    files: list[str]
    folders: list[str]
    details: dict[str, Any]


class _Folders(Place):
    """A tree of folders, each listed whole: a million files in one of them are a million names."""

    @abstractmethod
    def _list(self, folder: str) -> _Inside:
        """What is in a folder, in any order."""

    @abstractmethod
    def _entry(self, name: str, details: Any) -> Entry | None:
        """A file; None for what is none after all."""

    def walk(self, root: str, *, files_first: bool, must_exist: bool) -> Iterator[Entry]:
        """All files below a folder; what goes away meanwhile is left out."""
        # Not a recursion: folders may be nested deeper than Python's stack. Last in, first out.
        waiting = [root]
        details: dict[str, Any] = {}
        while waiting:
            name = waiting.pop()
            if not name.endswith("/"):
                if entry := self._entry(name, details.pop(name, None)):
                    yield entry
                continue
            try:
                inside = self._list(name)
            except (FileNotFoundError, NotADirectoryError):
                if must_exist and name == root:
                    raise
                continue
            folders = [f"{folder}/" for folder in sorted(inside.folders, reverse=True)]
            if files_first:
                waiting += folders
                waiting += sorted(inside.files, reverse=True)
            else:
                waiting += sorted(folders + inside.files, reverse=True)
            details.update(inside.details)
            del inside

    def level(self, prefix: str) -> Iterator[Page]:
        try:
            inside = self._list(prefix[: prefix.rfind("/") + 1])
        except (FileNotFoundError, NotADirectoryError):
            return
        yield Page([], sorted(f"{name}/" for name in inside.folders if name.startswith(prefix)))
        for name in sorted(name for name in inside.files if name.startswith(prefix)):
            if entry := self._entry(name, inside.details.get(name)):
                yield Page([entry], [])

    def below(self, prefix: str) -> Iterator[Iterable[Entry]]:
        yield self.walk(prefix, files_first=False, must_exist=False)

    flat = below

    def together(self, parts: Iterable[Iterator[Any]]) -> Iterator[Any]:
        return chain.from_iterable(parts)


class _LocalFolders(_Folders):
    """Folders of this machine."""

    def _list(self, folder: str) -> _Inside:
        inside = _Inside([], [], {})
        with os.scandir(folder) as items:
            for item in items:
                names = inside.folders if item.is_dir(follow_symlinks=False) else inside.files
                names.append(folder + item.name)
        return inside

    def _entry(self, name: str, details: Any) -> Entry | None:
        try:
            found = os.stat(name)
            size = found.st_size
        except OSError:
            # A link that leads nowhere is listed too: it ends as a failure.
            if not os.path.lexists(name):
                return None
            if not os.path.islink(name):
                raise
            found, size = os.lstat(name), 0
        else:
            if not stat.S_ISREG(found.st_mode):
                return None  # A pipe with a picture's name would be waited for without end.
        return Entry(name, version_of_file(found, size), size)

    def enterable(self, folder: str) -> bool:
        return not os.path.islink(folder.rstrip("/"))


class _ListedFolders(_Folders):
    """Whatever else fsspec can list, folder by folder."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def _list(self, folder: str) -> _Inside:
        path = self._filesystem._strip_protocol(folder)
        # Before, for what is there now; after, so that nothing is kept.
        self._filesystem.invalidate_cache(path)
        found = self._filesystem.ls(path, detail=True)
        self._filesystem.invalidate_cache(path)
        # Some list an object that stands for the folder, or the folder itself.
        details = {
            item["name"]: item
            for item in found
            if item["type"] == "file" and not item["name"].endswith("/")
        }
        folders = {item["name"].rstrip("/") for item in found if item["type"] == "directory"}
        return _Inside(list(details), list(folders - {path.rstrip("/")}), details)

    def _entry(self, name: str, details: Any) -> Entry | None:
        return Entry(name, version_of(details), details.get("size"))
