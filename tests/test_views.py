"""What a reader takes for current: the views of deploy/duckdb, on the tables of several nights."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pytest
from checkpoints import make_checkpoint
from conftest import LABELS, Job, encoded, picture, write_pictures
from packing import pack
from servers import both_stores

VIEWS = Path(__file__).parent.parent / "deploy" / "duckdb" / "views.sql"


class Views:
    """The views, of an output that is told now or later."""

    def __init__(self, output: Path | str, bucket: Any = None) -> None:
        self._database = duckdb.connect()
        if bucket is not None:
            self._database.register_filesystem(bucket)
        self._database.execute("SET VARIABLE output = ?", [str(output)])
        self._database.execute(VIEWS.read_text())

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return self._database.sql(query).fetchall()

    def close(self) -> None:
        self._database.close()

    def current(self, columns: str = "version") -> dict[str, Any]:
        """The latest row of each picture, which both views must have of the same version."""
        embedded = self.ask(f"SELECT uri, {columns}, version FROM latest_embeddings")
        tagged = self.ask(
            "SELECT DISTINCT uri, version FROM latest_tags WHERE label_set LIKE 'things-%'"
        )
        assert sorted(tagged) == sorted((uri, version) for uri, _, version in embedded)
        assert len({uri for uri, _ in tagged}) == len(tagged)
        return {Path(uri).name: told for uri, told, _ in embedded}

    def failing(self) -> dict[str, str]:
        rows = self.ask("SELECT uri, reason FROM open_failures")
        assert len(dict(rows)) == len(rows)
        return {Path(uri).name: reason for uri, reason in rows}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "archive", 3)


def nights() -> Iterator[dict[str, Any]]:
    return ({"run_date": f"2026-01-{day:02d}", "shard_size": 2} for day in range(1, 32))


def put(path: Path, content: bytes, second: int) -> None:
    """A file that was changed at that time, which is its version."""
    path.write_bytes(content)
    os.utime(path, (second, second))


def test_the_version_that_was_embedded_last(job: Job, archive):
    first, other = encoded(picture(seed=50)), encoded(picture(seed=51))
    night = nights()
    for second, content in enumerate([first, other, first], 1000):
        put(archive / "00001.jpg", content, second)
        # This one goes back to what its store takes for the same version, as an etag may be.
        put(archive / "00002.jpg", content, 1000 + second % 2)
        done = job(input=archive, **next(night))
        assert done.status == 0, done.err
    assert (done.record["counts"]["reused"], done.record["counts"]["duplicates"]) == (2, 1)
    views = Views(done.output)
    assert len(views.ask("FROM all_embeddings")) == 6
    versions = views.current()
    assert versions["00001.jpg"].startswith("1002")
    # As README.md beside the views says: the tables do not tell that it is back.
    assert versions["00002.jpg"].startswith("1001")
    # What has its earlier bytes again has their vector and tags.
    vectors = dict(views.ask("SELECT dt, embedding FROM all_embeddings WHERE uri LIKE '%1.jpg'"))
    days = sorted(vectors)
    assert views.current("embedding")["00001.jpg"] == vectors[days[0]] == vectors[days[2]]
    assert vectors[days[1]] != vectors[days[0]]
    of_day = "SELECT label, rank, score FROM all_predictions WHERE uri LIKE '%1.jpg' AND dt = '{}'"
    latest = views.ask("SELECT label, rank, score FROM latest_tags WHERE uri LIKE '%1.jpg'")
    for day, same in zip(days, [True, False, True], strict=True):
        scores = {row[:2]: row[2] for row in views.ask(of_day.format(day))}
        assert ({row[:2]: row[2] for row in latest} == pytest.approx(scores, abs=1e-5)) == same


def test_the_label_file_of_the_last_finished_run(job: Job, archive, labels, tmp_path):
    night, colours = nights(), tmp_path / "colours.yaml"
    colours.write_text("name: colours-of-0badcafe\nlabels: [red, green]\n")
    job(f"--labels={colours}", input=archive, **next(night))
    put(archive / "00001.jpg", encoded(picture(seed=50)), 2000)
    labels.write_text(LABELS.replace("dog, cat, tree, car, house", "dog, boat"))
    done = job(input=archive, **next(night))
    # Scoring comes in whatever order: when tags were made tells nothing of versions.
    changed = f"label_set={next(iter(done.record['label_sets']))}"
    for path in (done.output / "predictions" / changed).rglob("dt=2026-01-01/*"):
        path.unlink()
    done = job(input=archive, **next(night))
    views = Views(done.output)
    assert len(views.ask("SELECT DISTINCT label_set FROM all_predictions")) == 3

    def words(where: str) -> set[str]:
        query = f"SELECT DISTINCT label FROM latest_tags WHERE label_set LIKE '{where}'"
        return {label for (label,) in views.ask(query)}

    assert words("things-%") == {"dog", "boat"}
    assert words("colours-%") == {"red", "green"}
    assert views.current()["00001.jpg"].startswith("2000")
    of_colours = "SELECT uri, version FROM latest_tags WHERE label_set LIKE 'colours-%'"
    # Of the set that this run was not told of, the version before.
    assert len(set(views.ask(of_colours))) == 3

    # The words before, with nothing new to tag with them.
    labels.write_text(LABELS)
    done = job(input=archive, **next(night))
    assert words("things-%") > {"dog"}
    assert "boat" not in words("things-%")
    # A run that did not end has not scored all of them.
    record = done.record | {"status": "interrupted", "started_at": "2999-01-01T00:00:00+00:00"}
    record["label_sets"] = {"things-00000000": {}}
    (done.output / "runs" / "z.json").write_text(json.dumps(record))
    assert "boat" not in words("things-%")
    assert words("things-%") > {"dog"}
    names = views.ask("SELECT name FROM current_label_sets ORDER BY name")
    assert names == [("colours-of-0badcafe",), ("things",)]


def test_nothing_found_hides_the_tags_of_an_earlier_version(job: Job, archive, tmp_path):
    words = tmp_path / "w.yaml"
    night = nights()
    words.write_text("name: w\nlabels: [dog, cat]\nactivation: cosine\nthreshold: -1\n")
    done = job(input=archive, labels=words, **next(night))
    views = Views(done.output)
    assert len(views.ask("FROM latest_tags")) == 6
    # The same label file finds nothing in the new version: as if its scores had been low.
    put(archive / "00001.jpg", encoded(picture(seed=50)), 2000)
    done = job(input=archive, labels=words, **next(night))
    assert len(views.ask("FROM latest_tags")) == 6
    (file,) = (done.output / "predictions").rglob("dt=2026-01-02/*.parquet")
    duckdb.sql(f"""COPY (SELECT * REPLACE (NULL::VARCHAR AS label, 0::INT AS rank)
        FROM read_parquet('{file}', hive_partitioning = false) WHERE rank = 1)
        TO '{file}.new' (FORMAT parquet)""")
    os.replace(f"{file}.new", file)
    left = views.ask("SELECT uri FROM latest_tags")
    assert {Path(uri).name for (uri,) in left} == {"00000.jpg", "00002.jpg"}


def test_failures_are_open_until_the_item_is_embedded(job: Job, archive):
    night = nights()
    put(archive / "00000.jpg", b"<html>", 1000)
    put(archive / "00001.jpg", b"<html>", 1000)
    views = Views(job(input=archive, max_bytes=100, **next(night)).output)
    bad = {"00000.jpg": "not_an_image", "00001.jpg": "not_an_image", "00002.jpg": "too_many_bytes"}
    assert views.failing() == bad
    assert views.current() == {}
    # One is mended, one broken in another way, and one had nothing wrong with it.
    put(archive / "00000.jpg", encoded(picture()), 2000)
    put(archive / "00001.jpg", b"", 2000)
    job(input=archive, retry="all", **next(night))
    assert len(views.ask("FROM all_failures")) == 4
    assert views.failing() == {"00001.jpg": "empty"}
    good = views.current()
    assert set(good) == {"00000.jpg", "00002.jpg"}
    # The last good version keeps its tags when the next one fails, and when that is not tried.
    put(archive / "00002.jpg", encoded(picture())[:400], 2000)
    for known in (1, 2):
        done = job(input=archive, **next(night))
        assert done.record["known_failures"] == known
        assert views.failing() == {"00001.jpg": "empty", "00002.jpg": "truncated_image"}
        assert views.current() == good
    # What is gone leaves all views.
    for name in ("00000.jpg", "00001.jpg"):
        (archive / name).unlink()
    job("--prune", input=archive, **next(night))
    assert views.failing() == {"00002.jpg": "truncated_image"}
    assert views.current() == {"00002.jpg": good["00002.jpg"]}


def test_a_tar_that_was_broken_off(job: Job, tmp_path):
    """Its failure, which none of its members has, is over when one has come of it since."""
    good = [(f"{number}.jpg", encoded(picture(seed=number))) for number in range(3)]
    tars, night = (
        {"a#1.tar": pack(good), "b.tar": pack([*good[:2], ("3.jpg", b"<html>")])},
        nights(),
    )
    put(tmp_path / "a", b"", 1000)
    for name, whole in tars.items():
        put(tmp_path / name, whole[: len(whole) // 2], 1000)
    inputs = [f"--input={tmp_path}/{name}" for name in ("a", *tars)]
    views = Views(job(*inputs, **next(night)).output)
    broken = dict.fromkeys(tars, "corrupt_archive")
    assert views.failing() == {**broken, "a": "empty"}
    put(tmp_path / "a#1.tar", tars["a#1.tar"], 2000)
    job(*inputs, **next(night))
    assert views.failing() == {"b.tar": "corrupt_archive", "a": "empty"}
    # All that is new may be a failure.
    put(tmp_path / "b.tar", pack([("3.jpg", b"<html>")]), 2000)
    job(*inputs, **next(night))
    assert views.failing() == {"b.tar#3.jpg": "not_an_image", "a": "empty"}


def test_models_are_apart(job: Job, archive, vit, tmp_path_factory):
    other = make_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)
    night = nights()
    job(input=archive, **next(night))
    put(archive / "00001.jpg", encoded(picture(seed=50)), 2000)
    (archive / "00002.jpg").unlink()
    done = job(input=archive, model=f"local-dir:{other}", **next(night))
    views = Views(done.output)
    counted = "SELECT model, count(DISTINCT uri), count(DISTINCT version) FROM {} GROUP BY ALL"
    for view in ("latest_embeddings", "latest_tags"):
        rows = views.ask(counted.format(view))
        assert sorted(row[1:] for row in rows) == [(2, 2), (3, 3)]
        assert len({row[0] for row in rows}) == 2
    one = "SELECT DISTINCT model FROM latest_embeddings WHERE version LIKE '2000%'"
    assert views.ask(one) == [(done.record["model_id"],)]


def test_of_an_item_that_a_manifest_gives_an_id_and_texts(job: Job, archive, tmp_path):
    manifest = tmp_path / "m.csv"
    rows = ["archive/00000.jpg,1,a", "archive/00000.jpg,2,b", "archive/00001.jpg,,c"]
    manifest.write_text("\n".join(["uri,id,text", *rows]))
    night = nights()
    job(input=manifest, **next(night))
    manifest.write_text("\n".join(["uri,id,text,owner", rows[0] + ",x", rows[1] + "!,y"]))
    done = job(input=manifest, carry="owner", **next(night))
    views = Views(done.output)
    latest = views.ask("SELECT id, owner, dt::VARCHAR FROM latest_embeddings ORDER BY id")
    assert latest == [
        ("1", None, "2026-01-01"), ("2", "y", "2026-01-02"), (None, None, "2026-01-01"),
    ]  # fmt: skip
    assert len(views.ask("FROM latest_tags")) == 2 * 3


def test_an_output_is_named_when_it_is_asked_and_literally(job: Job, archive, tmp_path):
    put(archive / "00001.jpg", b"", 1000)
    odd = tmp_path / "o[1]u*t? it's"
    job(input=archive, output=odd, run_date="2026-01-01")
    views = Views(f"{odd}/")
    assert len(views.ask("FROM latest_tags")) == 4
    (shown,) = re.findall(r"SELECT .*;", (VIEWS.parent / "README.md").read_text())
    assert sum(items for _, items in views.ask(shown)) == 2
    assert views.failing() == {"00001.jpg": "empty"}
    # All of a night's items may have failed: then there are files without rows.
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(archive / "00001.jpg", only)
    done = job(input=only, output=tmp_path / "out", run_date="2026-01-01")
    assert done.record["counts"]["failed"] == 1
    views._database.execute("SET VARIABLE output = ?", [str(done.output)])
    assert (views.ask("FROM latest_tags"), views.ask("FROM latest_embeddings")) == ([], [])
    assert views.failing() == {"00001.jpg": "empty"}
    with pytest.raises(duckdb.IOException, match="No files found"):
        Views(tmp_path / "nowhere")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_an_output_in_a_bucket(nightly, scheme):
    """By fsspec, as README.md beside the views says: this DuckDB has no httpfs as a package."""
    local = Views(nightly)
    with both_stores("tables"):
        bucket = fsspec.filesystem(scheme, default_cache_type="none")
        bucket.put(f"{nightly}/", f"{scheme}://tables/tags/", recursive=True)
        bucket.invalidate_cache()
        views = Views(f"{scheme}://tables/tags", bucket)
        for name in ("current_label_sets", "latest_tags", "latest_embeddings", "open_failures"):
            rows = views.ask(f"FROM {name} ORDER BY ALL")
            assert rows
            assert rows == local.ask(f"FROM {name} ORDER BY ALL")
        views.close()
