"""The SQL files for warehouses, read by sqlglot, and the scripts beside them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import sqlglot
from sqlglot import exp

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def script(name: str) -> ModuleType:
    """A script of deploy/, as a module that Beam's workers can find again."""
    path = DEPLOY / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"deploy_{name.replace('/', '_')}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_PARTITION_COLUMNS = re.compile(r"WITH PARTITION COLUMNS \((.*?)\)", re.DOTALL)


def statements(path: Path, dialect: str) -> list[exp.Expression]:
    """The statements of a file, none of which sqlglot gives up on.

    It knows no `WITH PARTITION COLUMNS`: that clause is read by `partition_columns`.
    """
    text = _PARTITION_COLUMNS.sub("", path.read_text())
    # Snowflake's client puts these in; those in quotes are texts as they stand.
    text = text.replace("<% dimensions %>", "64").replace("<% vector %>", "[0.5]")
    parsed = [part for part in sqlglot.parse(text, dialect=dialect) if part is not None]
    assert not any(isinstance(part, exp.Command) for part in parsed)
    return parsed


class Column(NamedTuple):
    """A column of a CREATE TABLE: its type in the dialect's words."""

    name: str
    kind: str
    required: bool


def tables(path: Path, dialect: str) -> dict[str, list[Column]]:
    """The tables that a file makes."""
    made = [part for part in statements(path, dialect) if part.args.get("kind") == "TABLE"]
    return {
        create.find(exp.Table).name: [
            Column(
                column.name,
                column.args["kind"].sql(dialect=dialect),
                column.find(exp.NotNullColumnConstraint) is not None,
            )
            for column in create.find_all(exp.ColumnDef)
        ]
        for create in made
    }


def partition_columns(path: Path) -> Iterator[list[str]]:
    """The keys of each `WITH PARTITION COLUMNS`, in order."""
    for clause in _PARTITION_COLUMNS.findall(path.read_text()):
        made = sqlglot.parse_one(f"CREATE TABLE t ({clause})", dialect="bigquery")
        yield [column.name for column in made.find_all(exp.ColumnDef)]


def in_duckdb(statement: exp.Expression, dialect: str) -> str:
    """The statement as DuckDB has it, without how a table is stored."""
    statement = statement.copy()
    if isinstance(statement, exp.Create) and statement.args.get("kind") == "TABLE":
        statement.set("properties", None)
    told = statement.sql(dialect="duckdb")
    # What sqlglot does not turn into DuckDB's: an array of anything, an object's texts and keys.
    told = told.replace("embedding []", "embedding FLOAT[]").replace("VARIANT", "JSON")
    told = re.sub(r"CAST\(record -> ('[^']+') AS", r"CAST(record ->> \1 AS", told)
    return re.sub(
        r",\s+CROSS JOIN UNNEST\(input => \(record -> '\$\.label_sets'\)\) AS sets\(.*?\)",
        " CROSS JOIN UNNEST(json_keys(record, '$.label_sets')) AS sets(key)",
        told,
    )
