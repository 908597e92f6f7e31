"""The job every night on one output: what is read, what is loaded, and what is there afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import pytest
from checkpoints import make_checkpoint
from conftest import LABELS, Job, encoded, picture, write_pictures
from faulty import Faulty, faulty_server
from nights import Night, asked_for, files, night, rows, uris, watched
from servers import CLIENTS

NO_PICTURE = b"<html>not found</html>"


class Archive(NamedTuple):
    """Pictures 0 to 4 and one object that is none on a store, and room for tables there."""

    server: Faulty
    store: fsspec.AbstractFileSystem
    url: str
    output: str

    def put(self, name: str, data: bytes) -> None:
        self.store.pipe_file(f"{self.url}/{name}", data)

    def read(self) -> set[str]:
        return {name.rpartition("/")[2] for name in asked_for(self.server, "archive")}


@pytest.fixture(scope="module", params=["s3", "gs"])
def servers(request) -> Iterator[tuple[str, Faulty]]:
    with watched(request.param, "archive", "tables") as server:
        yield request.param, server


@pytest.fixture
def archive(request, servers) -> Archive:
    scheme, server = servers
    name = f"{request.node.originalname}"
    url, output = f"{scheme}://archive/{name}", f"{scheme}://tables/{name}"
    archive = Archive(server, fsspec.filesystem(scheme), url, output)
    for number in range(5):
        archive.put(f"{number}.jpg", encoded(picture(seed=number)))
    archive.put("bad.jpg", NO_PICTURE)
    return archive


# What a night costs, as the store sees it.


def test_a_night_in_which_nothing_changed(job: Job, archive):
    first = night(job, input=archive.url, output=archive.output, shard_size=2)
    assert first.counts == (6, 0, 5, 0, 1)
    assert "no model was loaded" not in first.out
    # Or what is said below of the second night would hold of any.
    assert archive.read() == {*(f"{number}.jpg" for number in range(5)), "bad.jpg"}
    assert first.record["model"]["loaded"] == ["image", "text"]
    before = files(archive.output)
    for run_date in ("2026-01-31", "2026-02-01"):
        archive.server.reset()
        # Another shard size, another batch size: what is done is told by item.
        again = night(
            job, input=archive.url, output=archive.output, run_date=run_date, shard_size=3
        )
        assert again.counts == (6, 5, 0, 0, 1)
        record = again.record
        assert (record["known_failures"], record["failures"]) == (1, {"not_an_image": 1})
        assert (record["model"]["loaded"], record["files"], record["bytes"]) == ([], [], 0)
        assert "no model was loaded" in again.out
        assert asked_for(archive.server, "archive") == set()
        # The tables are asked for their vectors' keys, and no prediction.
        own = asked_for(archive.server, "tables")
        assert {name.split("/")[1] for name in own} == {
            "_beamtag_lock.json", "embeddings", "failures", "runs",
        }  # fmt: skip
        assert files(archive.output) == before


def test_only_what_is_new_or_changed_is_read(job: Job, archive):
    night(job, input=archive.url, output=archive.output)
    old = {row["uri"]: row for row in rows(archive.output, "embeddings")}
    archive.put("new.jpg", encoded(picture(seed=10)))
    archive.put("1.jpg", encoded(picture(seed=11)))
    archive.store.rm_file(f"{archive.url}/2.jpg")
    archive.server.reset()
    done = night(job, input=archive.url, output=archive.output)
    assert archive.read() == {"new.jpg", "1.jpg"}
    assert done.counts == (6, 3, 2, 0, 1)
    # Beside the old row of what has changed, and of what is gone, which nobody asked to prune.
    embedded = rows(archive.output, "embeddings")
    assert sorted(uris(archive.output)) == [
        "0.jpg", "1.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "new.jpg",
    ]  # fmt: skip
    assert [row for row in embedded if row["run_id"] != done.record["run_id"]] == list(old.values())
    changed = max(
        (row for row in embedded if row["uri"].endswith("/1.jpg")),
        key=lambda row: row["embedded_at"],
    )
    before = old[changed["uri"]]
    assert changed["version"] != before["version"]
    assert changed["content_sha256"] != before["content_sha256"]
    tagged = {(row["uri"], row["version"]) for row in rows(archive.output, "predictions")}
    assert tagged == {(row["uri"], row["version"]) for row in embedded}


def test_changed_labels_read_no_picture(job: Job, archive, tmp_path):
    night(job, input=archive.url, output=archive.output, shard_size=2)
    vectors = rows(archive.output, "embeddings")
    other = tmp_path / "other.yaml"
    other.write_text(LABELS.replace("car, house", "bridge, a boat").replace("top_k: 2", "top_k: 3"))
    archive.server.reset()
    done = night(job, input=archive.url, output=archive.output, labels=other)
    record = done.record
    assert asked_for(archive.server, "archive") == set()
    assert (record["model"]["loaded"], record["scored"]) == (["text"], 5)
    assert done.counts == (6, 5, 0, 0, 1)
    assert "no model was loaded" not in done.out
    assert rows(archive.output, "embeddings") == vectors
    (label_set,) = record["label_sets"]
    written = f"{archive.output}/predictions/label_set={label_set}"
    assert {name.rpartition("/")[2] for name in files(written)} == {
        name.rpartition("/")[2] for name in files(f"{archive.output}/embeddings")
    }
    # As a run that reads everything with these labels.
    whole = night(job, input=archive.url, output=tmp_path / "whole", labels=other)
    expected = rows(whole.output, "predictions")
    found = rows(archive.output, f"predictions/label_set={label_set}")
    told = ("uri", "version", "id", "label", "rank")
    assert [[row[name] for name in told] for row in found] == [
        [row[name] for name in told] for row in expected
    ]
    assert len(found) == 15
    for name in ("score", "similarity"):
        assert [row[name] for row in found] == pytest.approx(
            [row[name] for row in expected], abs=1e-6
        )
    again = night(job, input=archive.url, output=archive.output, labels=other)
    assert again.record["model"]["loaded"] == []


# What was broken off.


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, and a file that is none."""
    folder = write_pictures(tmp_path / "archive", 4)
    (folder / "bad.jpg").write_bytes(NO_PICTURE)
    return folder


def test_a_run_that_got_no_further_than_embeddings_is_completed(job: Job, folder, tmp_path):
    output = tmp_path / "out"
    # Files where the folders of this day's predictions are to be.
    first = night(job, input=folder, output=tmp_path / "elsewhere", run_date="2026-01-31")
    (label_set,) = first.record["label_sets"]
    place = output / "predictions" / f"label_set={label_set}" / f"model={first.record['model_id']}"
    place.mkdir(parents=True)
    (place / "dt=2026-01-31").write_text("")
    broken = night(job, input=folder, run_date="2026-01-31", status=1)
    assert broken.err.splitlines()[-1].startswith(f"beamtag tag: failed: cannot write {place}")
    assert len(uris(output)) == 4
    assert files(output / "failures") == set()
    (place / "dt=2026-01-31").unlink()
    done = night(job, input=folder)
    record = done.record
    # The failure's row comes last, and so had not come: it is tried again.
    assert done.counts == (5, 4, 0, 0, 1)
    assert (record["scored"], record["known_failures"]) == (4, 0)
    assert sorted(uris(output, "predictions")) == sorted(2 * uris(output))
    assert uris(output, "failures") == ["bad.jpg"]
    assert night(job, input=folder).record["model"]["loaded"] == []


def test_predictions_that_somebody_deleted_come_back(job: Job, folder, tmp_path):
    first = night(job, input=folder, shard_size=2, run_date="2026-01-30")
    before = rows(first.output, "predictions")
    lost = sorted((first.output / "predictions").rglob("*.parquet"))[1]
    untouched = {
        path: path.stat().st_mtime_ns for path in first.output.rglob("*.parquet") if path != lost
    }
    lost.unlink()
    # On another day; they are those of the day on which the vectors were made.
    done = night(job, input=folder, shard_size=2, run_date="2026-01-31")
    record = done.record
    assert (record["model"]["loaded"], record["files"]) == (["text"], [str(lost)])
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    times = ("run_id", "tagged_at")
    assert [{**row, **dict.fromkeys(times)} for row in rows(first.output, "predictions")] == [
        {**row, **dict.fromkeys(times)} for row in before
    ]
    shutil.rmtree(first.output / "predictions")
    assert night(job, input=folder).record["scored"] == 4
    assert len(rows(first.output, "predictions")) == len(before)


def test_a_damaged_table_is_named(job: Job, folder):
    """Whatever a truncated file was of, and wherever the run comes upon it."""
    first = night(job, input=folder, shard_size=4)
    whole = {path: path.read_bytes() for path in first.output.rglob("*.parquet")}
    for table in ("embeddings", "failures"):
        path = next(path for path in whole if f"/{table}/" in str(path) and len(whole[path]) > 99)
        damages = [whole[path][: len(whole[path]) // 2], b"", whole[path][:-9] + b"\xff" * 9]
        for damaged in damages:
            path.write_bytes(damaged)
            done = night(job, input=folder, status=1)
            (line,) = done.err.splitlines()
            assert line.startswith(f"beamtag tag: failed: cannot read {path}: ")
            assert "`beamtag verify`" in line
            assert done.record["status"] == "failed"
        path.write_bytes(whole[path])
    night(job, input=folder)


# What failed.


def test_another_model_has_its_own_vectors_and_the_same_failures(job: Job, folder, tmp_path):
    first = night(job, input=folder)
    other = make_checkpoint(tmp_path / "other" / "net", seed=5)
    for run in range(2):
        done = night(job, input=folder, model=f"local-dir:{other}")
        assert done.counts == ((5, 0, 4, 0, 1), (5, 4, 0, 0, 1))[run]
        assert done.record["known_failures"] == 1
    assert uris(first.output, "failures") == ["bad.jpg"]
    ids = [run.record["model_id"] for run in (first, done)]
    vectors = [[row["embedding"] for row in rows(first.output / "embeddings", f"model={id_}")]
               for id_ in ids]  # fmt: skip
    assert [len(of) for of in vectors] == [4, 4]
    assert vectors[0] != vectors[1]
    # And the first one's are still done.
    assert night(job, input=folder).counts == (5, 4, 0, 0, 1)


def test_which_failures_are_tried_again(job: Job, tmp_path, monkeypatch):
    shelf = write_pictures(tmp_path / "store" / "archive" / "in", 2)
    slow = encoded(picture(seed=7))
    for name, data in (("bad", NO_PICTURE), ("changed", NO_PICTURE), ("slow", slow)):
        (shelf / f"{name}.jpg").write_bytes(data)
    for name, value in CLIENTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("transforms.fetching.TRIES", 2)

    def run(server: Faulty, output: Path, day: int, retry: str) -> tuple[Night, set[str]]:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.reset()
        date = f"2026-01-0{day}"
        done = night(job, input="s3://archive/in", output=output, retry=retry, run_date=date)
        return done, {name.removeprefix("in/") for name in asked_for(server, "archive")}

    failing = {"faults": 1.0, "kinds": ["503"], "most": 99, "only": r"/slow\.jpg"}
    with faulty_server(folder=tmp_path / "store", **failing) as server:
        first, _ = run(server, tmp_path / "first", 1, "retryable")
    assert first.counts == (5, 0, 2, 0, 3)
    reasons = {row["uri"].rpartition("/")[2]: row["reason"]
               for row in rows(first.output, "failures")}  # fmt: skip
    assert reasons == {
        "bad.jpg": "not_an_image", "changed.jpg": "not_an_image", "slow.jpg": "unavailable",
    }  # fmt: skip
    (shelf / "changed.jpg").write_bytes(encoded(picture(seed=8)))
    with faulty_server(folder=tmp_path / "store", only="", count_paths=True) as server:
        for retry, again in (
            ("none", set()), ("retryable", {"slow.jpg"}), ("all", {"slow.jpg", "bad.jpg"}),
        ):  # fmt: skip
            output = shutil.copytree(first.output, tmp_path / retry)
            second, read = run(server, output, 2, retry)
            # Other bytes are another item, whatever became of the old ones.
            assert read == {"changed.jpg", *again}
            assert second.record["known_failures"] == 2 - len(again)
            found = {"00000.jpg", "00001.jpg", *read - {"bad.jpg"}}
            assert set(uris(output)) == found
            # A reader sees each failure, with its night, also of what has a vector since.
            failed = [(row["uri"].rpartition("/")[2], row["run_id"])
                      for row in rows(output, "failures")]  # fmt: skip
            anew = [("bad.jpg", second.record["run_id"])] if "bad.jpg" in again else []
            old = [(name, first.record["run_id"]) for name in reasons]
            assert sorted(failed) == sorted(old + anew)
        # What has a vector is done however it failed before, also where every failure is tried.
        third, read = run(server, tmp_path / "none", 3, "all")
        assert (read, third.counts) == ({"bad.jpg", "slow.jpg"}, (5, 3, 1, 0, 1))
        last, read = run(server, tmp_path / "none", 4, "all")
        assert (read, last.counts) == ({"bad.jpg"}, (5, 4, 0, 0, 1))
        last, read = run(server, tmp_path / "none", 5, "retryable")
        assert (read, last.counts) == (set(), (5, 4, 0, 0, 1))
        assert last.record["model"]["loaded"] == []
