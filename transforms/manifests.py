"""ReadManifests: lists of media to references, row by row, through Beam's file sources.

A row that cannot be used is a reference with a `problem`; a manifest that cannot be used is a
`ManifestError`, at launch if it can be known then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.io.filesystem import CompressionTypes

from transforms.beamfiles import beam_path, open_object, url_of
from transforms.manifestfiles import KINDS, read_rows
from transforms.manifestrows import ManifestError, one_line
from transforms.records import MediaRef
from transforms.storage import StorageOptions, use_storage_options


@dataclass
class ReadManifests(beam.PTransform[beam.PCollection[str], beam.PCollection[MediaRef]]):
    """Manifests, each the URL or path of one object taken literally, to a reference for each row.

    `carry` names the columns whose values are to be in every table. A manifest that is not there,
    or is none, fails the run.
    """

    carry: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[str]) -> beam.PCollection[MediaRef]:
        """Wire the reading."""
        refs: beam.PCollection[MediaRef] = (
            pcoll
            | "NameManifests" >> beam.Map(_name_manifest, self.storage_options)
            | "MatchManifests" >> fileio.MatchAll(fileio.EmptyMatchTreatment.DISALLOW)
            | "OpenManifests" >> fileio.ReadMatches()
            | "ReadRows" >> beam.FlatMap(_read_manifest, self.carry, self.storage_options)
        )
        return refs


def _name_manifest(url: str, storage_options: StorageOptions) -> str:
    if storage_options:
        use_storage_options(storage_options)
    return beam_path(url)


def _read_manifest(
    file: fileio.ReadableFile, carry: tuple[str, ...], storage_options: StorageOptions
) -> Iterator[MediaRef]:
    if storage_options:
        use_storage_options(storage_options)
    url = url_of(file.metadata.path)
    # As it is stored: Beam's own unpacking takes a cut file for a whole one.
    with file.open(compression_type=CompressionTypes.UNCOMPRESSED) as opened:
        yield from read_rows(opened, _kind(url), url, carry)


def manifest_kind(url: str) -> str | None:
    """What kind of manifest a name says it is, gzipped or not: None for no manifest."""
    path = urlsplit(url).path if url.startswith(("http://", "https://")) else url
    name = path.lower()
    kind = os.path.splitext(name.removesuffix(".gz"))[1].removeprefix(".")
    return kind if kind in KINDS and not name.endswith(".parquet.gz") else None


def _kind(url: str) -> str:
    kind = manifest_kind(url)
    if kind is None:
        raise ManifestError(
            f"{url} is no manifest: the name of one ends in .txt, .csv, .tsv or .jsonl, gzipped "
            "or not, or in .parquet"
        )
    return kind


def check_manifest(url: str, carry: tuple[str, ...]) -> None:
    """Read the beginning of a manifest, before any work starts. Raises ManifestError."""
    try:
        with open_object(url) as file:
            first = next(read_rows(file, _kind(url), url, carry), None)
    except ManifestError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"{url} does not exist") from error
    # Every store's client has its own errors.
    except Exception as error:
        raise ManifestError(
            f"cannot read {url}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if first is not None and first.problem is not None and manifest_kind(url) == "jsonl":
        raise ManifestError(f"{url}: the first row {first.problem}")
