"""Prints the commands that bring a warehouse up to date with an output, to be piped to `sh -e`.

    python deploy/load.py bigquery gs://bucket/tags tags --days=3 | sh -e
    python deploy/load.py snowflake gs://bucket/tags --days=3 | sh -e

A day (`dt`) is loaded as a whole and takes the place of what the warehouse has of it, so a load
that is done twice changes nothing. Loaded are all days, or those of which a file was written in the
last `--days`: new labels score old days again, and `--prune` takes rows out of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

TABLES = {
    "embeddings": "{model:STRING}/{dt:DATE}",
    "predictions": "{label_set:STRING}/{model:STRING}/{dt:DATE}",
    "failures": "{dt:DATE}",
}
"""Each table's partition keys, in the order of its folders, as BigQuery wants to be told them."""

SNOWFLAKE = Path(__file__).parent / "snowflake" / "load.sql"


class Day(NamedTuple):
    """A day of a table: its folders, and when the last of its files was written."""

    table: str
    dt: str
    folders: tuple[str, ...]
    written: datetime.datetime


def days_of(output: str) -> list[Day]:
    """The days of an output's tables, from one listing of each. Raises what the store raises."""
    filesystem, root = fsspec.url_to_fs(output.rstrip("/"))
    days: list[Day] = []
    for table in TABLES:
        written: dict[str, dict[str, datetime.datetime]] = defaultdict(dict)
        for path, details in filesystem.find(f"{root}/{table}", detail=True).items():
            folder, _, name = path.removeprefix(root).strip("/").rpartition("/")
            _, marked, dt = folder.rpartition("/dt=")
            if marked and name.startswith("shard-") and name.endswith(".parquet"):
                folders = written[dt]
                folders[folder] = max(_written(details), folders.get(folder, _EPOCH))
        days += [
            Day(table, dt, tuple(sorted(folders)), max(folders.values()))
            for dt, folders in sorted(written.items())
        ]
    return days


_EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)


def _written(details: Mapping[str, Any]) -> datetime.datetime:
    """When a file was written, by the name that its store gives it; now if it does not tell."""
    names = ("LastModified", "mtime", "last_modified")
    time = next(filter(None, map(details.get, names)), None)
    if isinstance(time, int | float):
        return datetime.datetime.fromtimestamp(time, datetime.UTC)
    return time if isinstance(time, datetime.datetime) else datetime.datetime.now(datetime.UTC)


def runs_of(output: str) -> Iterator[dict[str, Any]]:
    """What `current_label_sets` needs of each run's record."""
    filesystem, root = fsspec.url_to_fs(output.rstrip("/"))
    for path in sorted(filesystem.find(f"{root}/runs")):
        if path.endswith(".json"):
            record = json.loads(filesystem.cat_file(path))
            told = {name: record[name] for name in ("run_id", "started_at", "status")}
            yield {**told, "model": record["model_id"], "label_sets": list(record["label_sets"])}


def bigquery(output: str, dataset: str, days: Sequence[Day]) -> Iterator[str]:
    """A `bq load` for each day of each table, over its partition; then the runs, all of them."""
    output = output.rstrip("/")
    for day in days:
        # A URI may have one asterisk: so there is one of each folder.
        uris = ",".join(f"{output}/{folder}/shard-*.parquet" for folder in day.folders)
        yield shlex.join(
            [
                "bq", "load", "--source_format=PARQUET", "--parquet_enable_list_inference",
                "--replace", "--schema_update_option=ALLOW_FIELD_ADDITION",
                "--time_partitioning_field=dt", "--hive_partitioning_mode=CUSTOM",
                f"--hive_partitioning_source_uri_prefix={output}/{day.table}/{TABLES[day.table]}",
                f"{dataset}.{day.table}${day.dt.replace('-', '')}", uris,
            ]
        )  # fmt: skip
    yield "runs=$(mktemp)"
    yield "cat > \"$runs\" <<'END'"
    yield from (json.dumps(run) for run in runs_of(output))
    yield "END"
    yield f'bq load --source_format=NEWLINE_DELIMITED_JSON --replace {dataset}.runs "$runs"'


def snowflake(days: Sequence[Day]) -> Iterator[str]:
    """load.sql for each day."""
    for dt in sorted({day.dt for day in days}):
        yield shlex.join(["snow", "sql", "-f", str(SNOWFLAKE), "-D", f"dt={dt}"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("warehouse", choices=("bigquery", "snowflake"))
    parser.add_argument("output", help="the tables: gs://bucket/tags")
    parser.add_argument("dataset", nargs="?", default="tags", help="BigQuery's (%(default)s)")
    parser.add_argument("--days", type=float, help="days that were written in the last so many")
    options = parser.parse_args(argv)
    since = _EPOCH
    if options.days is not None:
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=options.days)
    found = days_of(options.output)
    if not found:
        parser.error(f"{options.output} has no tables")
    days = [day for day in found if day.written >= since]
    if options.warehouse == "bigquery":
        lines = bigquery(options.output, options.dataset, days)
    else:
        lines = snowflake(days)
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
