"""Where a URL leads, and what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

StorageOptions = Mapping[str, Mapping[str, Any]]
"""Arguments of each store's fsspec client, by its URL scheme."""

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of setup.py that brings a store's package."""

_CONFIGURED = {scheme: dict(options) for scheme, options in fsspec.config.conf.items()}
"""What fsspec's own configuration files and variables said before any job did."""

_LITERAL = frozenset({"file", "local", "memory", "http", "https", "s3", "s3a", "gs", "gcs"})
"""Stores whose URLs are names and nothing else. S3's client would look for a version in them."""


def use_storage_options(options: StorageOptions) -> None:
    """Give the clients of these stores these arguments, in this process, from now on.

    Over fsspec's own configuration, which is where every client looks, libraries' included.
    """
    for scheme in {*fsspec.config.conf, *options}:
        fsspec.config.conf[scheme] = {**_CONFIGURED.get(scheme, {}), **options.get(scheme, {})}


def locate(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec filesystem of a URL or local path, and the path there, taken literally.

    Unlike fsspec's `url_to_fs`, `::` and `://` inside a local name mean nothing. `options` go to
    the filesystem, over those of `use_storage_options`. Raises ValueError for a store that fsspec
    does not know or that needs more options, ImportError for one whose package is missing.
    """
    protocol = _protocol(url)
    try:
        if protocol not in _LITERAL:
            # Of ftp://host/path and the like the client is made for the host.
            told = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
            options = {**told, **options}
        filesystem = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f": pip install 'beamtag[{extra}]'" if extra else ""
        raise ImportError(
            f"{protocol}:// needs a package that is not installed{hint} ({error})"
        ) from error
    except TypeError as error:
        # Which the constructors of clients raise for arguments that are missing or unknown.
        raise ValueError(f"{protocol}:// needs other storage options: {error}") from error
    return filesystem, filesystem._strip_protocol(url)


def prefix_of(url: str, filesystem: Any, path: str) -> str | None:
    """What makes a URL of a path of a store whose URLs have more than names, such as a host.

    `filesystem` and `path` are those of `locate(url)`. None for all other stores.
    """
    if _protocol(url) in _LITERAL or not filesystem._get_kwargs_from_urls(url):
        return None
    place = url.rstrip("/")
    name = path.rstrip("/")
    if not place.endswith(name):
        return None
    return place[: len(place) - len(name)]


def _protocol(url: str) -> str:
    return (None if url.startswith("/") else fsspec.core.split_protocol(url)[0]) or "file"


def version_of(details: dict[str, Any]) -> str:
    """What tells one version of an object from another, at no extra request.

    The store's generation or etag, or mtime and size.
    """
    for key in ("generation", "ETag", "etag"):
        if details.get(key):
            return str(details[key]).removeprefix("W/").strip('"')
    modified = details.get("mtime") or details.get("created") or details.get("LastModified") or ""
    return f"{modified}-{details.get('size')}"


def version_of_file(status: os.stat_result, size: int) -> str:
    """The same of a local file, as the system tells of it: a listing asks for millions of them."""
    return f"{status.st_mtime or status.st_ctime or ''}-{size}"


def read_object(url: str) -> bytes:
    """The whole content of one object, its name taken literally. Raises what the store raises."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        # Not through fsspec's file object: among many threads it cost a whole job a tenth.
        with open(path, "rb") as file:
            return file.read()
    content: bytes = filesystem.cat_file(path)
    return content
