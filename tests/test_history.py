"""Whatever happens to an archive over several nights, its tables hold what they should."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from archives import CONTENTS, DAYS, NAMES, PICTURES, TEXTS, Archive, Edit, Item, Night
from checkpoints import make_checkpoint
from history import Expected, Shard, Tables, shard_files
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from plain import LABEL_FILES, Truth

from pipelines import tag, verify

PLACES = re.compile(r"(embeddings|predictions|failures)/.*/shard-[0-9a-f]{16}\.parquet|runs/.*json")


@pytest.fixture(scope="module")
def truth(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("truth")
    return Truth([vit, make_checkpoint(folder / "other", seed=1)], folder)


class History:
    """An archive, its output, and what should be in that."""

    def __init__(self, folder: Path, truth: Truth) -> None:
        self.truth = truth
        self.archive = Archive(folder / "archive")
        self.output = folder / "out"
        self.tables = Tables(self.archive)

    def arguments(self, night: Night) -> list[str]:
        given = [f"--input={self.archive.folder}{place}" for place in night.inputs]
        kinds = ["--extensions=jpg,png,txt"] if night.texts else []
        return [f"--output={self.output}", *given, *kinds]

    def live_through(self, night: Night) -> None:
        for edit in night.edits:
            self.archive.edit(edit)
        before, written = set(shard_files(self.output)), len(self.tables.shards)
        expected = self.tables.run(night)
        truth = self.truth
        status = tag.main(
            [
                *self.arguments(night),
                *(f"--labels={truth.label_files[name]}" for name in night.label_sets),
                *(f"--{name}={value}" for name, value in night.flags.items()),
                *(["--prune"] if night.prune else []),
                f"--model={truth.models[night.model]}",
                "--decode=exact",
                "--quiet",
            ]
        )
        assert status == (1 if expected.refused else 0)
        self.check_record(expected)
        self.check(night)
        if night.survive is not None:
            self.kill(night, self.tables.shards[written:], before)

    @property
    def record_path(self) -> Path:
        return max((self.output / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def check_record(self, expected: Expected) -> None:
        record = json.loads(self.record_path.read_text())
        if expected.refused:
            assert record["status"] == "failed"
            assert "not pruned" in record["error"]
            return
        assert record["status"] == "finished"
        assert record["counts"] == expected.counts
        counts = dict(expected.counts)
        assert counts.pop("listed") == sum(counts.values())
        assert record["failures"] == expected.failures
        assert record["known_failures"] == expected.known_failures
        assert record["scored"] == expected.scored
        assert record["model"]["loaded"] == expected.loaded
        assert record.get("pruned", {}).get("items") == expected.pruned

    def rows(self, table: str) -> list[dict[str, Any]]:
        if not (self.output / table).exists():
            return []
        rows: list[dict[str, Any]] = (
            ds.dataset(self.output / table, partitioning="hive").to_table().to_pylist()
        )
        return rows

    def check(self, night: Night) -> None:
        """All tables, the view of the latest versions, and that nothing else is there."""
        truth, tables = self.truth, self.tables
        models, sets = truth.model_ids, truth.label_set_ids
        embedded = self.rows("embeddings")
        assert tables.embeddings() == Counter(
            (models.index(row["model"]), str(row["dt"]), item_of(row)) for row in embedded
        )
        for row in embedded:
            modality, content = tables.content(item_of(row))
            assert row["modality"] == modality
            vector = truth.vector(models.index(row["model"]), modality, content)
            np.testing.assert_allclose(row["embedding"], vector, atol=1e-5)
        names = {id_: name for name, id_ in sets.items()}
        found = Counter(
            (
                names[row["label_set"]],
                models.index(row["model"]),
                str(row["dt"]),
                item_of(row),
                row["rank"],
                row["label"],
            )
            for row in self.rows("predictions")
        )
        assert tables.predictions(self.tags_of) == found
        assert tables.failures() == Counter(
            (str(row["dt"]), item_of(row), row["reason"]) for row in self.rows("failures")
        )
        for label_set in night.label_sets:
            self.check_latest(night, label_set)
        files = [path for path in self.output.rglob("*") if path.is_file()]
        assert [path for path in files if not PLACES.fullmatch(self.below(path))] == []

    def tags_of(self, model: int, label_set: str, item: Item) -> list[Any]:
        return self.truth.tags(model, label_set, *self.tables.content(item))

    def below(self, path: Path) -> str:
        return str(path.relative_to(self.output))

    def check_latest(self, night: Night, label_set: str) -> None:
        """A reader who takes the rows that were embedded last sees the archive as it is."""
        latest = {
            Item(uri, version)
            for (model, uri), version in self.tables.latest.items()
            if model == night.model
        }
        if not latest:
            return
        place = (
            f"{self.output}/predictions/label_set={self.truth.label_set_ids[label_set]}"
            f"/model={self.truth.model_ids[night.model]}/**/*.parquet"
        )
        view = duckdb.sql(
            f"SELECT uri, version, rank, label FROM read_parquet('{place}') "
            "QUALIFY rank() OVER (PARTITION BY uri ORDER BY embedded_at DESC) = 1"
        ).fetchall()
        assert Counter(view) == Counter(
            (*item, *tag) for item in latest for tag in self.tags_of(night.model, label_set, item)
        )
        good = {
            item
            for shard in self.tables.of(night.model)
            for item in shard.embedded.intersection(self.archive.listed(night))
        }
        # What was listed before, then in another version, and is back, keeps the rows it had.
        assert all(self.tables.came_back(item) for item in good - latest)

    def kill(self, night: Night, shards: Sequence[Shard], before: set[Path]) -> None:
        """Leave of a finished run what is there of one that was killed."""
        record = json.loads(self.record_path.read_text())
        ended = ("finished_at", "counts", "files", "pruned")
        told = {name: value for name, value in record.items() if name not in ended}
        self.record_path.write_text(json.dumps({**told, "status": "running"}))
        written = [path for path in shard_files(self.output) if path not in before]
        owners = {path: self.owner(path, night) for path in written}
        names = {id_: name for name, id_ in self.truth.label_set_ids.items()}
        for path in reversed(written[night.survive :]):
            table, *parts = self.below(path).split("/")
            path.unlink()
            if table == "predictions":
                table = names[parts[0].removeprefix("label_set=")]
            self.tables.lose(owners[path], table)

    def owner(self, path: Path, night: Night) -> Shard:
        """The shard that a file is of, by the items that its files tell of."""
        items: set[Item] = set()
        for other in shard_files(self.output):
            if (other.name, other.parent.name) == (path.name, path.parent.name):
                items.update(
                    map(item_of, pq.ParquetFile(other).read(["uri", "version"]).to_pylist())
                )
        (owner,) = (
            shard
            for shard in self.tables.of(night.model)
            if items == {*shard.embedded, *shard.failed} and shard.day in str(path)
        )
        return owner


def item_of(row: dict[str, Any]) -> Item:
    return Item(row["uri"], row["version"])


names = st.sampled_from(NAMES)
edits = st.one_of(
    st.builds(Edit, st.just("put"), names, st.sampled_from(sorted(CONTENTS))),
    st.builds(Edit, st.just("put"), names, st.sampled_from(sorted(PICTURES | TEXTS))),
    st.builds(Edit, st.sampled_from(["touch", "remove"]), names, st.just("")),
    st.builds(Edit, st.sampled_from(["move", "copy"]), names, names),
)
nights = st.builds(
    Night,
    edits=st.lists(edits, min_size=1, max_size=8).map(tuple),
    inputs=st.sampled_from([("",), ("",), ("/*.jpg",), ("/sub", "/*.jpg"), ("", "/*.jpg")]),
    texts=st.booleans(),
    label_sets=st.lists(
        st.sampled_from(sorted(LABEL_FILES)), min_size=1, max_size=2, unique=True
    ).map(tuple),
    model=st.sampled_from([0, 0, 0, 1]),
    day=st.sampled_from(DAYS),
    retry=st.sampled_from(["retryable", "none", "all"]),
    refuse_large=st.booleans(),
    prune=st.booleans(),
    shard_size=st.integers(1, 8),
    batch_size=st.integers(1, 8),
    survive=st.one_of(st.none(), st.integers(0, 6)),
)


def ending_well(history: Sequence[Night]) -> list[Night]:
    """After a run that is killed comes one of the same model, which mends it."""
    nights = list(history)
    for number in range(1, len(nights)):
        if nights[number - 1].survive is not None:
            nights[number] = replace(nights[number], model=nights[number - 1].model)
    return [*nights[:-1], replace(nights[-1], survive=None)]


LARGE, ONE, TWO = (
    Edit("put", "a.jpg", "large"),
    Edit("put", "a.jpg", "one"),
    Edit("put", "b.jpg", "two"),
)


@pytest.mark.timeout(900)
@example(
    # All of a shard fails, and is tried again on the same day with fewer label sets.
    history=[
        Night((LARGE,), label_sets=("few", "sure"), refuse_large=True),
        Night(retry="all"),
        Night(label_sets=("few", "sure")),
    ]
)
@example(
    # All of a shard is gone and pruned, and comes back on the same day.
    history=[
        Night((ONE, TWO), label_sets=("few", "sure"), shard_size=1),
        Night((Edit("move", "b.jpg", "d.txt"),), prune=True),
        Night((Edit("move", "d.txt", "b.jpg"),)),
        Night(label_sets=("sure",)),
    ]
)
@given(history=st.lists(nights, min_size=3, max_size=5).map(ending_well))
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    # Half a second a night is too long for making a failure smaller: the test would time out.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
def test_the_tables_hold_what_they_should_after_every_night(truth: Truth, history):
    with tempfile.TemporaryDirectory() as folder:
        lived = History(Path(folder), truth)
        for night in history:
            lived.live_through(night)
        assert verify.main([*lived.arguments(history[-1]), "--quiet"]) == 0
