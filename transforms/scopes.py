"""What an input would list if it were there, and of which objects rows of the tables are."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import has_magic

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from transforms import names
from transforms.listing import EXTENSIONS, _details, _fixed_part, _uri
from transforms.records import Input, InputKind, Selection
from transforms.selecting import selector
from transforms.storage import locate, prefix_of

_CONTAINERS: tuple[tuple[InputKind, tuple[str, ...]], ...] = (
    ("tar", names.TARS),
    ("manifest", names.MANIFESTS),
)
_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


def objects_of(uri: str, id: str | None) -> Iterator[Input]:  # noqa: A002
    """Which objects a row may be of, each with the kind of input that would list it.

    None for rows of manifests that have no object. `#` may be part of a name, or come before a
    tar's member or a manifest's row. A tar's members all have an `id`, and what was listed by
    itself has none.
    """
    before = [uri[: mark.start()] for mark in re.finditer("#", uri)]
    container, kind = next(filter(None, map(_container, before)), (None, None))
    if container is not None:
        if kind == "tar" and id is not None:
            yield Input(container, "tar")
    elif not before or id is None:
        yield Input(uri, "media")
        yield Input(uri, "tar")
    else:
        # A member of a tar that is not named like one.
        for tar in before:
            yield Input(tar, "tar")


def _container(uri: str) -> tuple[str, InputKind] | None:
    for kind, endings in _CONTAINERS:
        if uri.lower().endswith(endings):
            return uri, kind
    return None


@dataclass
class Scope:
    """An input, and what it would list; `listed` counts what it does."""

    given: Input
    covers_now: Callable[[str], bool]
    lost_place: str = ""
    listed: int = 0

    def covers(self, uri: str) -> bool:
        """Whether the object would be listed; of a place that is gone, all that was in it."""
        if self.lost_place and not self.listed and f"{uri}/".startswith(f"{self.lost_place}/"):
            return True
        return self.covers_now(uri)


def scope_of(given: Input, selection: Selection) -> Scope:
    """An input as it is now: the same decisions as `list_media` takes. Raises as that does."""
    filesystem, path = locate(given.url)
    to_uri = partial(_uri, filesystem, prefix_of(given.url, filesystem, path))
    found = _details(filesystem, path).get("type")
    own = to_uri(path)
    is_glob = found not in ("file", "directory") and has_magic(path)
    # What is not there was a folder, or a literal name, as well as it may be a glob.
    lost_place = "" if found in ("file", "directory") else own
    if found != "directory" and not is_glob:
        return Scope(given, own.__eq__, lost_place)
    start = _fixed_part(path) if is_glob else path
    extensions = selection.extensions or (None if is_glob else EXTENSIONS[given.kind])
    wanted = selector(selection, extensions, len(start.rstrip("/")) + 1 if start else 0)
    matches = re.compile(glob_translate(path)).match if is_glob else None
    local = isinstance(filesystem, LocalFileSystem)
    folder = f"{start.rstrip('/')}/" if start or local else ""
    reaches = _reaches(folder) if local else _names_a_file
    below = to_uri(folder)

    def covers(uri: str) -> bool:
        return uri.startswith(below) and all(
            wanted(name) and reaches(name) and (matches is None or matches(name) is not None)
            for name in _spellings(folder + uri[len(below) :], local)
        )

    return Scope(given, covers, lost_place)


def _spellings(name: str, local: bool) -> Iterator[str]:
    """A printable name, and what it may have been before."""
    yield name
    if local and _ESCAPED_BYTE.search(name):
        yield _ESCAPED_BYTE.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), name)


def _names_a_file(name: str) -> bool:
    return not name.endswith("/")


def _reaches(folder: str) -> Callable[[str], bool]:
    """Whether a walk down from a local folder spells a name so; links to folders it passes by."""
    is_link = functools.lru_cache(maxsize=4096)(os.path.islink)

    def reaches(name: str) -> bool:
        parts = name[len(folder) :].split("/")
        return not {"", ".", ".."}.intersection(parts) and not any(
            is_link(folder + "/".join(parts[:depth])) for depth in range(1, len(parts))
        )

    return reaches
