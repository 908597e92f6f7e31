"""Nights: the same job again and again on one output, and stores that tell what was asked of them.

A night's archive is a bucket, `archive`; its tables are in another, `tables`, or in a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import fsspec
import pyarrow.parquet as pq
import pytest
from conftest import Job
from faulty import Faulty, faulty_server
from servers import CLIENTS, gcs_server, s3_server

ADDRESS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}


class Night(NamedTuple):
    """A run that has ended: what it printed, and its record."""

    out: str
    err: str
    output: Path | str
    record: dict[str, Any]

    @property
    def counts(self) -> tuple[int, ...]:
        """Listed, reused, embedded, duplicates, failed."""
        return tuple(self.record["counts"].values())


def night(job: Job, *arguments: str, status: int = 0, **flags: Any) -> Night:
    """A run that ends as it should, and whose account balances, whatever it found."""
    done = job(*arguments, **flags)
    assert done.status == status, done.err
    filesystem, path = fsspec.url_to_fs(f"{done.output}/runs")
    filesystem.invalidate_cache()
    records = [json.loads(filesystem.cat_file(name)) for name in filesystem.find(path)]
    record = max(records, key=lambda record: record["started_at"])
    if status == 0:
        parts = dict(record["counts"])
        assert parts.pop("listed") == sum(parts.values())
        assert (record["status"], record["unbalanced_shards"]) == ("finished", {})
    return Night(done.out, done.err, done.output, record)


def files(output: Path | str) -> set[str]:
    """The tables' files."""
    filesystem, path = fsspec.url_to_fs(str(output))
    filesystem.invalidate_cache()
    return {name for name in filesystem.find(path) if name.endswith(".parquet")}


def rows(output: Path | str, table: str) -> list[dict[str, Any]]:
    """A table's rows, by item and rank."""
    filesystem, _ = fsspec.url_to_fs(str(output))
    found: list[dict[str, Any]] = []
    for name in files(f"{output}/{table}"):
        with filesystem.open(name) as file:
            found += pq.read_table(file, partitioning=None).to_pylist()
    return sorted(found, key=lambda row: (row["uri"], row["version"], row.get("rank", 0)))


def uris(output: Path | str, table: str = "embeddings") -> list[str]:
    """Whose rows a table has, by their base names."""
    return [row["uri"].rpartition("/")[2] for row in rows(output, table)]


def asked_for(server: Faulty, bucket: str) -> set[str]:
    """The objects of a bucket that a GET has named since the last `reset`.

    What is left out are listings, which name none, and what a listing begins with: the input.
    """
    names = set()
    for path in server.counts().get("per_path", ()):
        place, _, name = re.sub("^(/download)?/storage/v1/b/", "/", path)[1:].partition("/")
        name = name.removeprefix("o").removeprefix("/") if "/storage/" in path else name
        if place == bucket and "/" in unquote(name):
            names.add(unquote(name))
    return names


@contextmanager
def watched(scheme: str, *buckets: str) -> Iterator[Faulty]:
    """A real emulator behind a proxy that counts; every client of the scheme talks to it."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CLIENTS.items():
            environment.setenv(name, value)
        kind = fsspec.get_filesystem_class(scheme)
        with (
            (s3_server if scheme == "s3" else gcs_server)() as emulator,
            faulty_server(upstream=emulator, only="", count_paths=True) as proxy,
        ):
            environment.setenv(ADDRESS[scheme], proxy.url)
            kind.clear_instance_cache()
            for bucket in buckets:
                fsspec.filesystem(scheme).mkdir(bucket)
            yield proxy
            kind.clear_instance_cache()
