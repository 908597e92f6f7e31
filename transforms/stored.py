"""What an output holds already: its files, found by listing it, and columns of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from transforms.browsing import files_under
from transforms.storage import locate
from transforms.tabletext import printable

_NAME = re.compile(
    r"(?:label_set=(?P<label_set>[^/]+)/)?(?:model=(?P<model>[^/]+)/)?dt=(?P<dt>[^/]+)/"
    r"shard-(?P<shard_id>[0-9A-Za-z-]+)\.parquet"
)


class StoredFile(NamedTuple):
    """One file of a table: `OUTPUT/table/[label_set=/][model=/]dt=/shard-<id>.parquet`.

    `label_set` and `model` are empty where the table is not parted by them.
    """

    url: str
    table: str
    label_set: str
    model: str
    dt: str
    shard_id: str

    @property
    def name(self) -> tuple[str, str]:
        """What a file of `embeddings` and its files of `predictions` have in common."""
        return self.dt, self.shard_id


def stored_files(
    output: str,
    table: str,
    *,
    label_set: str | None = None,
    model: str | None = None,
    dt: str | None = None,
) -> Iterator[StoredFile]:
    """A table's files, those of one label set or model if told so; none where there is no table.

    With `dt`, which needs a `model`, those of one day. What is not named like a table's file is
    left out. Raises what the store raises.
    """
    folder = f"{output.rstrip('/')}/{table}"
    if label_set is not None:
        folder += f"/label_set={label_set}"
    if model is not None and (label_set is not None or table == "embeddings"):
        folder += f"/model={model}"
        if dt is not None:
            folder += f"/dt={dt}"
    filesystem, root = locate(f"{output.rstrip('/')}/{table}")
    _, path = locate(folder)
    try:
        for entry in files_under(filesystem, path):
            below = entry.name[len(root) :].lstrip("/")
            if named := _NAME.fullmatch(below):
                parts = named.groupdict(default="")
                if model is not None and parts["model"] != model:
                    continue
                yield StoredFile(f"{output.rstrip('/')}/{table}/{below}", table, **parts)
    except FileNotFoundError:
        return


class DamagedError(Exception):
    """A file of the output is no table's file: one line tells which and why."""

    def __init__(self, url: str, why: object) -> None:
        told = " ".join(f"cannot read {printable(url)}: {why}".split()).removesuffix(".")
        super().__init__(f"{told}; `beamtag verify` tells what else of its output is damaged")


@contextlib.contextmanager
def open_held(url: str) -> Iterator[pq.ParquetFile]:
    """As `open_parquet`, for a run's own reading: what is no such file raises `DamagedError`."""
    try:
        with open_parquet(url) as file:
            yield file
    except pa.ArrowException as error:
        raise DamagedError(url, error) from error
    except OSError as error:
        # pyarrow's own of a broken page; those of the system and of stores are told by more.
        if type(error) is not OSError or error.errno is not None:
            raise
        raise DamagedError(url, error) from error


@contextlib.contextmanager
def open_parquet(url: str, *, checksums: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, of which only what is asked for is read, if so told with its checksums.

    Raises `pa.ArrowInvalid` for what is none, OSError for a page that does not have its checksum
    when it is read, and what the store raises.
    """
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=checksums) as file:
            yield file
        return
    # Without read-ahead: pyarrow asks for the ranges that it wants, neighbours together.
    with (
        filesystem.open(path, "rb", cache_type="none") as opened,
        pq.ParquetFile(opened, pre_buffer=True, page_checksum_verification=checksums) as file,
    ):
        yield file


def read_columns(url: str, columns: Sequence[str]) -> pa.Table:
    """These columns of a file, those of them that it has."""
    with open_parquet(url) as file:
        has = set(file.schema_arrow.names)
        return file.read([name for name in columns if name in has])
