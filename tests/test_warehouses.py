"""The SQL of BigQuery and of Snowflake, run as near to them as can be without an account.

sqlglot reads every statement in its own dialect and turns it into DuckDB's; what the commands of
deploy/load.py load is loaded by DuckDB from the files that they name. The same is then asked of
deploy/duckdb, over the files themselves.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pytest
from servers import both_stores
from sqlglot import exp
from warehouses import DEPLOY, in_duckdb, partition_columns, script, statements

TAG = (
    "uri, version, id, label, label_id, rank, score, similarity, label_set, model, dt, embedded_at"
)
VECTOR = "uri, version, id, modality, embedding, model, dt, embedded_at"


load = script("load")


@pytest.fixture(scope="module")
def views(nightly: Path) -> duckdb.DuckDBPyConnection:
    """deploy/duckdb's views of the same tables."""
    database = duckdb.connect()
    database.execute("SET VARIABLE output = ?", [str(nightly)])
    database.execute((DEPLOY / "duckdb" / "views.sql").read_text())
    return database


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    load.main(arguments)
    out: str = capsys.readouterr().out
    return out


def add_columns(
    database: duckdb.DuckDBPyConnection, table: str, files: Sequence[str], besides: set[str]
) -> None:
    """Columns of the files that the table has not: ALLOW_FIELD_ADDITION."""
    has = {name for name, *_ in database.sql(f"DESCRIBE {table}").fetchall()}
    read = f"DESCRIBE FROM read_parquet({files}, hive_partitioning = false, union_by_name = true)"
    for name, kind, *_ in database.sql(read).fetchall():
        if name not in has | besides:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


class BigQuery:
    """What `bq load` is told to do, done by DuckDB on local files."""

    def __init__(self) -> None:
        self.database = duckdb.connect()
        self.database.execute("CREATE SCHEMA tags")
        self.run("tables.sql")

    def run(self, name: str) -> None:
        for statement in statements(DEPLOY / "bigquery" / name, "bigquery"):
            self.database.execute(in_duckdb(statement, "bigquery"))

    def follow(self, commands: str) -> list[str]:
        """Do as the commands say; gives the tables and days that they load."""
        commands, _, rest = commands.partition("runs=$(mktemp)\n")
        loaded = []
        for line in commands.splitlines():
            *flags, target, uris = shlex.split(line)
            assert flags[:2] == ["bq", "load"]
            assert flags[2] == "--source_format=PARQUET"
            assert {"--replace", "--parquet_enable_list_inference"} < set(flags)
            self._load(flags, target, uris.split(","))
            loaded.append(target)
        heredoc, *rows, end, last = rest.splitlines()
        assert (heredoc, end) == ("cat > \"$runs\" <<'END'", "END")
        assert shlex.split(last)[-3:] == ["--replace", "tags.runs", "$runs"]
        self.database.execute("DELETE FROM tags.runs")
        for row in map(json.loads, rows):
            columns = ", ".join(f"${name}" for name in row)
            self.database.execute(
                f"INSERT INTO tags.runs ({', '.join(row)}) VALUES ({columns})", row
            )
        return loaded

    def _load(self, flags: Sequence[str], target: str, uris: list[str]) -> None:
        (prefix,) = (flag.partition("=")[2] for flag in flags if "uri_prefix" in flag)
        root, encoded = prefix[: prefix.index("/{")], prefix[prefix.index("/{") :]
        keys = dict(re.findall(r"\{(\w+):(\w+)\}", encoded))
        table, _, day = target.partition("$")
        # One asterisk in a URI at most; before the keys' folders all URIs are one.
        assert all(uri.count("*") == 1 and uri.startswith(f"{root}/") for uri in uris)
        date = datetime.date(int(day[:4]), int(day[4:6]), int(day[6:]))
        add_columns(self.database, table, uris, set(keys))
        types = {"STRING": "VARCHAR", "DATE": "DATE"}
        hive = ", ".join(f"'{key}': {types[kind]}" for key, kind in keys.items())
        self.database.execute(f"DELETE FROM {table} WHERE dt = ?", [date])
        self.database.execute(
            f"INSERT INTO {table} BY NAME FROM read_parquet({uris}, hive_types = {{{hive}}})"
        )
        others = f"FROM read_parquet({uris}, hive_types = {{{hive}}}) WHERE dt <> '{date}'"
        assert self.database.sql(others).fetchall() == []


class Snowflake:
    """What load.sql says, done by DuckDB on local files; the stage is the output's folder."""

    def __init__(self, output: Path) -> None:
        self.database = duckdb.connect()
        self.output = output
        self.run("tables.sql")

    def run(self, name: str, **variables: str) -> None:
        for statement in statements(DEPLOY / "snowflake" / name, "snowflake"):
            if isinstance(statement, exp.Copy):
                self._copy(statement.sql(dialect="snowflake"), variables)
            elif statement.args.get("kind") not in ("STAGE", "FILE FORMAT"):
                told = in_duckdb(statement, "snowflake")
                self.database.execute(_filled(told, variables))

    def _copy(self, told: str, variables: dict[str, str]) -> None:
        (table, folder) = re.findall(r"^COPY INTO (\w+).*?@beamtag/(\w+)/", told)[0]
        assert "FORCE = TRUE" in told or "FORCE=TRUE" in told
        pattern = re.search("PATTERN ?= ?'(.*?)'", told)
        paths = sorted(str(path) for path in (self.output / folder).rglob("*.*"))
        if pattern:
            matches = re.compile(_filled(pattern[1], variables)).fullmatch
            paths = [path for path in paths if matches(path)]
        if table == "runs":
            self.database.execute(
                "INSERT INTO runs SELECT content::JSON FROM read_text(?)", [paths]
            )
        elif paths:
            # As the page says, an ALTER TABLE for what is carried.
            add_columns(self.database, table, paths, set())
            self.database.execute(
                f"INSERT INTO {table} BY NAME SELECT *, filename AS stage_file FROM read_parquet("
                f"{paths}, hive_partitioning = false, union_by_name = true)"
            )


def _filled(text: str, variables: dict[str, str]) -> str:
    return re.sub("<% (.*?) %>", lambda name: variables[name[1]], text)


def rows(database: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    found = database.sql(query).fetchall()
    return sorted(found, key=str)


def test_bigquery_has_what_the_files_have(nightly, views, capsys):
    warehouse = BigQuery()
    loaded = warehouse.follow(printed(capsys, "bigquery", str(nightly)))
    assert len(set(loaded)) == len(loaded) == 9
    warehouse.run("views.sql")
    check(warehouse.database, views, "tags.")
    # Done again it changes nothing.
    assert warehouse.follow(printed(capsys, "bigquery", f"{nightly}/")) == loaded
    check(warehouse.database, views, "tags.")


def test_snowflake_has_what_the_files_have(nightly, views, capsys):
    warehouse = Snowflake(nightly)
    commands = printed(capsys, "snowflake", str(nightly)).splitlines()
    days = [shlex.split(command) for command in commands]
    assert [command[-1] for command in days] == [f"dt=2026-01-0{day}" for day in (1, 2, 3)]
    for command in [*days, days[0]]:
        assert command[:3] == ["snow", "sql", "-f"]
        assert Path(command[3]) == DEPLOY / "snowflake" / "load.sql"
        warehouse.run("load.sql", dt=command[-1].removeprefix("dt="))
    warehouse.run("views.sql")
    check(warehouse.database, views, "")
    # One for all days.
    warehouse.run("load.sql", dt=".*")
    check(warehouse.database, views, "")


def check(
    warehouse: duckdb.DuckDBPyConnection, views: duckdb.DuckDBPyConnection, place: str
) -> None:
    """The views of both say the same, and there is something that they leave out."""
    assert rows(warehouse, f"FROM {place}current_label_sets") == rows(
        views, "SELECT model, name, label_set FROM current_label_sets"
    )
    for view, columns in {"latest_tags": TAG, "latest_embeddings": VECTOR}.items():
        found = rows(warehouse, f"SELECT {columns} FROM {place}{view}")
        assert found == rows(views, f"SELECT {columns} FROM {view}")
        table = view.replace("latest_tags", "predictions").replace("latest_", "")
        assert 0 < len(found) < len(rows(warehouse, f"FROM {place}{table}"))
    failed = "SELECT uri, version, reason, model, owner, dt FROM "
    own = f"{place}failures" if place else "all_failures"
    assert rows(warehouse, failed + own) == rows(views, failed + "all_failures")


def nearest(views: duckdb.DuckDBPyConnection, vector: list[float]) -> list[tuple[str, float]]:
    """What numpy finds among the latest rows, best first."""
    found = views.sql("SELECT uri, embedding FROM latest_embeddings").fetchall()
    similarities = np.array([embedding for _, embedding in found]) @ np.array(vector)
    order = np.argsort(-similarities)
    return [(found[place][0], float(similarities[place])) for place in order]


def check_search(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert [uri for uri, _ in found] == [uri for uri, _ in wanted]
    similarities = [similarity for _, similarity in found]
    assert similarities == pytest.approx([similarity for _, similarity in wanted], abs=1e-5)
    assert Path(found[0][0]).name == "cat-2.webp"


def test_search_by_a_text(nightly, views, capsys):
    """With the vector that deploy/text_vector.py prints; DuckDB calls the functions otherwise."""
    capsys.readouterr()
    script("text_vector").main(["a drawing of a cat"])
    vector = json.loads(capsys.readouterr().out)
    (model,) = (path.name.removeprefix("model=") for path in (nightly / "embeddings").iterdir())
    wanted = nearest(views, vector)

    bigquery = BigQuery()
    bigquery.follow(printed(capsys, "bigquery", str(nightly)))
    bigquery.run("views.sql")
    (query,) = statements(DEPLOY / "bigquery" / "search.sql", "bigquery")
    told, count = re.subn(
        r"VECTOR_SEARCH\(\((SELECT .*?)\), 'embedding', \(SELECT \$vector AS embedding\), "
        r"top_k => 20, distance_type => 'COSINE'\)",
        r"(SELECT base, list_cosine_distance(base.embedding, $vector::FLOAT8[]) AS distance "
        r"FROM (\1) AS base ORDER BY distance LIMIT 20)",
        in_duckdb(query, "bigquery"),
    )
    assert count == 1
    values = {"model": model, "vector": vector}
    found = bigquery.database.execute(told, values).fetchall()
    # An old version may be among the nearest, and is not shown.
    check_search(found, [row for row in wanted if row[0] in {uri for uri, _ in found}])
    assert len(found) >= len(wanted) - 1

    snowflake = Snowflake(nightly)
    snowflake.run("load.sql", dt=".*")
    snowflake.run("views.sql")
    (query,) = statements(DEPLOY / "snowflake" / "search.sql", "snowflake")
    told, count = re.subn(
        r"LIST_COSINE_DISTANCE\(CAST\(embedding AS VECTOR\(DOUBLE, 64\)\), CAST\(\[0.5\] AS "
        r"VECTOR\(DOUBLE, 64\)\)\)",
        f"list_cosine_similarity(embedding, {vector}::FLOAT[])",
        in_duckdb(query, "snowflake"),
    )
    assert count == 1
    check_search(snowflake.database.sql(_filled(told, {"model": model})).fetchall(), wanted)


def test_only_days_that_were_written_lately(nightly, tmp_path, capsys):
    """On both stores, by what their listings tell of time; new words write to old days too."""
    with both_stores("tables"):
        for scheme in ("gs", "s3"):
            output = f"{scheme}://tables/tags"
            filesystem = fsspec.filesystem(scheme)
            filesystem.put(f"{nightly}/", f"{output}/", recursive=True)
            filesystem.invalidate_cache()
            found = load.days_of(output)
            assert found == sorted(found, key=lambda day: (list(load.TABLES).index(day.table), day))
            local = load.days_of(str(nightly))
            assert [day[:3] for day in found] == [day[:3] for day in local]
            age = [datetime.datetime.now(datetime.UTC) - day.written for day in found]
            assert all(abs(each) < datetime.timedelta(minutes=5) for each in age)
            lately = printed(capsys, "bigquery", output, "archive", "--days=1")
            assert lately.count("bq load") == 10
            assert f"archive.embeddings$20260101' '{output}/embeddings/model=" in lately
            assert list(load.runs_of(output)) == list(load.runs_of(str(nightly)))
    assert printed(capsys, "snowflake", str(nightly), "--days=0") == ""
    nothing = printed(capsys, "bigquery", str(nightly), "--days=0")
    assert nothing.count("bq load") == 1
    # Where there is nothing, nothing is replaced by it.
    with pytest.raises(SystemExit, match="2"):
        load.main(["bigquery", str(tmp_path / "nowhere")])
    assert "nowhere has no tables" in capsys.readouterr().err


def test_what_the_hive_keys_are_told_to_be():
    """To `bq load` as to the tables over the files."""
    told = [re.findall(r"\{(\w+):", keys) for keys in load.TABLES.values()]
    assert told == list(partition_columns(DEPLOY / "bigquery" / "external.sql"))
