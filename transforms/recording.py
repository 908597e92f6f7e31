"""WriteRunRecord: the accounts of a run's shards become its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from transforms.accounting import Account, MaxFailures, finished, merge_accounts
from transforms.publishing import publish
from transforms.runlock import give_back
from transforms.storage import StorageOptions, use_storage_options
from transforms.utilisation import where_time_went


class UnfinishedError(Exception):
    """A run that nobody waits for has not finished: its job is to fail, as a command would."""


@dataclass
class WriteRunRecord(beam.PTransform[beam.PCollection[Account], beam.PCollection[str]]):
    """Accounts of listing and of shards to `runs/<run_id>.json`; gives the record's URL.

    `header` is what is known before anything ran; it stands first in the record. With `gives_back`
    nobody waits for the run's end: its place is given back then, and a run that is not `finished`
    fails its job.
    """

    url: str
    header: Mapping[str, Any]
    storage_options: StorageOptions = field(default_factory=dict)
    max_failures: MaxFailures | None = None
    gives_back: bool = False

    def expand(self, pcoll: beam.PCollection[Account]) -> beam.PCollection[str]:
        """Merge, then write once."""
        record: beam.PCollection[str] = (
            pcoll
            | "MergeAccounts" >> beam.CombineGlobally(merge_accounts)
            | "WriteRecord"
            >> beam.Map(
                write_run_record,
                self.url,
                self.header,
                self.storage_options,
                self.max_failures,
                self.gives_back,
            )
        )
        return record


def write_run_record(
    account: Account,
    url: str,
    header: Mapping[str, Any],
    storage_options: StorageOptions | None = None,
    max_failures: MaxFailures | None = None,
    gives_back: bool = False,
) -> str:
    """Write a finished run's record and give its URL. Raises `UnfinishedError`, see above."""
    use_storage_options(storage_options or {})
    record = {**header, **finished(account, header["started_at"], max_failures)}
    record |= where_time_went(record)
    publish_record(url, record)
    if gives_back:
        give_back(header["output"], header["run_id"])
        if record["status"] != "finished":
            raise UnfinishedError(f"{url}: the run is {record['status']}")
    return url


def publish_record(url: str, record: Mapping[str, Any]) -> None:
    """Write a record as JSON that a person can read."""
    content = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    publish(url, content, str(record.get("run_id", "")))
