"""Prune: rows of objects that are gone leave the tables; called when a run is over, and no Beam.

A row is judged only by an input that would list its object if it were there. Nothing is rewritten
before all inputs are listed and all rows judged.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from transforms.ahead import in_order
from transforms.itemkeys import NO_KEYS, Keys, keys_of, keys_of_rows
from transforms.ledger import FILES_AT_ONCE, TAR_END
from transforms.listing import list_media
from transforms.publishing import publish
from transforms.records import Input, Selection
from transforms.schemas import ITEM
from transforms.scopes import Scope, objects_of, scope_of
from transforms.stored import StoredFile, open_parquet, stored_files
from transforms.writing import parquet_bytes

TABLES = ("embeddings", "predictions", "failures")
"""In this order: what breaks off leaves an item tagged and not embedded, never the other way."""

_BLOCK = 4096


class PruneError(ValueError):
    """What is listed cannot tell what is gone; one line says why."""


class Pruned(NamedTuple):
    """What pruning took: files rewritten, rows, and items that these told of."""

    files: int
    rows: int
    items: int


def check_prunable(inputs: Iterable[Input]) -> None:
    """Refuse inputs that do not list places as a whole. Raises `PruneError`."""
    if any(given.kind == "manifest" for given in inputs):
        raise PruneError(
            "--prune needs folders, globs or tars: a manifest is not a complete listing of a place"
        )


def prune(output: str, inputs: Sequence[Input], selection: Selection, run_id: str) -> Pruned:
    """Rewrite every file that has rows of gone objects without them, under its name.

    What another run adds meanwhile is not touched. Done again, also after it broke off, it ends the
    same. Raises `PruneError` before anything is rewritten, and what stores and pyarrow raise.
    """
    check_prunable(inputs)
    # Before the inputs are listed: what is embedded after that may be newer than their listing.
    files = [file for table in TABLES for file in stored_files(output, table)]
    judge = _Judge(inputs, selection)
    rows, items = 0, bytearray()
    concerned = _concerned(files, judge)
    for file in concerned:
        with open_parquet(file.url) as opened:
            table = opened.read()
        gone = np.array(judge.gone(table), dtype=bool)
        left = table.filter(pa.array(~gone))
        # All that it said before, the version of its schema too.
        footer = dict(table.schema.metadata or {})
        if not left.num_rows:
            footer.pop(TAR_END, None)
        publish(file.url, parquet_bytes(left.replace_schema_metadata(), footer), run_id)
        rows += int(gone.sum())
        lost = table.filter(pa.array(gone))
        items += np.unique(keys_of_rows([lost.column(name) for name in ITEM])).tobytes()
    return Pruned(len(concerned), rows, len(np.unique(_as_keys(items))))


def _concerned(files: Iterable[StoredFile], judge: _Judge) -> list[StoredFile]:
    """The files to rewrite, those first that say that a tar was read to its end.

    A tar that comes back as it was must be read again, also where this breaks off halfway.
    """
    concerned: list[tuple[StoredFile, bool]] = []
    empty_ends: list[StoredFile] = []
    for file, told in in_order(_read, files, FILES_AT_ONCE):
        if any(judge.gone(told.columns)):
            concerned.append((file, told.ends_tar))
        elif told.ends_tar and not told.columns.num_rows:
            empty_ends.append(file)
    tars = {_tar_of(file) for file, _ in concerned}
    return [
        *(file for file in empty_ends if _tar_of(file) in tars),
        *(file for file, ends_tar in concerned if ends_tar),
        *(file for file, ends_tar in concerned if not ends_tar),
    ]


def _tar_of(file: StoredFile) -> str:
    """What the names of all files of a tar begin with."""
    return file.shard_id.partition("-")[0]


class _File(NamedTuple):
    """What judging a file takes: its columns `uri` and `id`, and whether it ends a tar."""

    columns: pa.Table
    ends_tar: bool


def _read(file: StoredFile) -> tuple[StoredFile, _File]:
    with open_parquet(file.url) as opened:
        columns = opened.read(["uri", "id"])
        return file, _File(columns, TAR_END in (opened.metadata.metadata or {}))


class _Judge:
    """Which rows are of objects that are gone, as the inputs are now."""

    def __init__(self, inputs: Iterable[Input], selection: Selection) -> None:
        digests = bytearray()
        self._scopes: list[Scope] = []
        for given in inputs:
            # As the run does: of tars nothing is selected.
            chosen = selection if given.kind == "media" else Selection()
            scope = scope_of(given, chosen)
            uris = (ref.uri for ref in list_media(given.url, given.kind, chosen))
            while block := list(itertools.islice(uris, _BLOCK)):
                digests += keys_of(block).tobytes()
                scope.listed += len(block)
            self._scopes.append(scope)
        self._listed = _as_keys(digests)
        self._listed.sort()
        # Of a tar all rows ask the same.
        self._are_gone = functools.lru_cache(maxsize=4096)(self._judge)

    def gone(self, table: pa.Table) -> list[bool]:
        """Of each row whether its object is gone. Raises `PruneError`."""
        rows = list(zip(*(table.column(name).to_pylist() for name in ("uri", "id")), strict=True))
        distinct = list(dict.fromkeys(rows))
        listed = self._are_listed([uri for uri, _ in distinct])
        gone = {
            row: not there and self._are_gone(tuple(objects_of(*row)))
            for row, there in zip(distinct, listed, strict=True)
        }
        return [gone[row] for row in rows]

    def _judge(self, objects: tuple[Input, ...]) -> bool:
        covering = [
            scope
            for scope in self._scopes
            if any(scope.given.kind == kind and scope.covers(uri) for uri, kind in objects)
        ]
        if not covering or any(self._are_listed([uri for uri, _ in objects])):
            return False
        for scope in covering:
            if not scope.listed:
                raise PruneError(
                    f"nothing is listed under {scope.given.url}: not pruned; remove its tables by "
                    "hand if that is meant"
                )
        return True

    def _are_listed(self, uris: Sequence[str]) -> list[bool]:
        asked = keys_of(uris)
        if not len(asked) or not len(self._listed):
            return [False] * len(asked)
        places = np.searchsorted(self._listed, asked) % len(self._listed)
        there: list[bool] = (self._listed[places] == asked).tolist()
        return there


def _as_keys(digests: bytearray) -> Keys:
    return np.frombuffer(digests, NO_KEYS.dtype)
