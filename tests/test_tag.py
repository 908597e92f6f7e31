"""The whole job, as its users meet it: a command, an exit status, and tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from checkpoints import make_checkpoint
from conftest import Job, encoded, picture, write_pictures
from PIL import Image

from pipelines import report
from transforms import writing
from transforms.accounting import Account
from transforms.processes import cores
from transforms.publishing import publish


@pytest.fixture
def archive(tmp_path) -> Path:
    """Twelve pictures in two folders, one of them no picture."""
    folder = tmp_path / "archive"
    write_pictures(folder / "a", 6)
    write_pictures(folder / "b", 6, width=80)
    (folder / "b" / "00003.jpg").write_bytes(b"<html>not found</html>")
    return folder


def test_a_folder_becomes_tables(job: Job, archive):
    done = job(input=archive, run_date="2026-01-31", shard_size=5, batch_size=2)
    assert done.status == 0, done.err
    embeddings = done.table("embeddings")
    predictions = done.table("predictions")
    failures = done.table("failures")
    pictures = sorted(str(path) for path in archive.rglob("*.jpg"))
    bad = str(archive / "b" / "00003.jpg")

    assert [row["uri"] for row in embeddings] == [uri for uri in pictures if uri != bad]
    assert [(row["uri"], row["reason"], row["retryable"]) for row in failures] == [
        (bad, "not_an_image", False)
    ]
    first = embeddings[0]
    assert (first["width"], first["height"], first["modality"]) == (64, 48, "image")
    assert first["bytes"] == os.path.getsize(first["uri"])
    assert len(first["embedding"]) == 32
    assert np.linalg.norm(first["embedding"]) == pytest.approx(1, abs=1e-6)
    assert str(first["dt"]) == "2026-01-31"

    # Two tags each (top_k), best first, of this model and this label set.
    assert [row["uri"] for row in predictions[::2]] == [row["uri"] for row in embeddings]
    assert [row["rank"] for row in predictions[:4]] == [1, 2, 1, 2]
    assert predictions[0]["score"] >= predictions[1]["score"]
    assert predictions[0]["label"] in {"dog", "cat", "tree", "car", "house"}
    assert predictions[0]["model"] == first["model"] == done.record["model_id"]
    assert predictions[0]["label_set"] == next(iter(done.record["label_sets"]))
    assert predictions[0]["label_set"].startswith("things-")

    record = done.record
    assert record["status"] == "finished"
    assert record["counts"] == {
        "listed": 12, "reused": 0, "embedded": 11, "duplicates": 0, "failed": 1,
    }  # fmt: skip
    assert record["failures"] == {"not_an_image": 1}
    assert {row["run_id"] for row in embeddings + predictions + failures} == {record["run_id"]}
    # Three shards of up to five, three tables.
    assert len(record["files"]) == 9
    written = {str(path) for path in done.output.rglob("*.parquet")}
    assert written == set(record["files"])
    assert list(record["stages"]) == ["fetch", "decode", "device", "score", "write"]
    assert all(spent["busy"] > 0 for spent in record["stages"].values())
    waits = {stage for stage, spent in record["stages"].items() if spent["waiting"] > 0}
    assert {"device", "write"} <= waits <= {"fetch", "decode", "device", "write"}
    assert 0 < record["startup_seconds"] < record["wall_seconds"]
    assert record["workers"] == {"processes": 1, "cores": cores()}
    assert record["device_utilisation"]["measured_by"] == "busy seconds of the device stage"
    assert 0 < record["device_utilisation"]["share"] < 1
    assert 0 < record["cpu_utilisation"] <= 1.1


def test_the_same_run_again_overwrites_itself(job: Job, archive):
    first = job(input=archive, run_date="2026-01-31", shard_size=5)
    files = sorted(first.output.rglob("*.parquet"))
    before = first.table("embeddings")
    again = job(input=archive, run_date="2026-01-31", shard_size=5, batch_size=3)
    assert sorted(again.output.rglob("*.parquet")) == files
    after = again.table("embeddings")
    assert [row["uri"] for row in after] == [row["uri"] for row in before]
    vectors = [np.array([row["embedding"] for row in rows]) for rows in (before, after)]
    assert vectors[1] == pytest.approx(vectors[0], abs=1e-5)
    assert len(list((again.output / "runs").iterdir())) == 2


def test_several_inputs_and_label_sets_in_one_run(job: Job, archive, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("name: colours\nlabels: [red, green]\nthreshold: 0.99\n")
    done = job(f"--input={archive}/a/*.jpg", f"--labels={other}", input=archive / "b" / "00000.jpg")
    assert done.status == 0, done.err
    assert done.record["counts"]["listed"] == 7
    rows = done.table("predictions")
    by_set = {row["label_set"].split("-")[0] for row in rows}
    assert by_set == {"things", "colours"}
    # Looked at, and no colour sure enough.
    nothing = [row for row in rows if row["label_set"].startswith("colours")]
    assert {(row["label"], row["rank"]) for row in nothing} == {(None, 0)}
    assert len(nothing) == 7


def test_what_a_person_reads(job: Job, archive):
    done = job(input=archive)
    for part in (
        "listed    12",
        "embedded  11",
        "failed    1 (1 not_an_image)",
        "items/s",
        f"\n{done.record['bottleneck']['sentence']}\n",
        "Most frequent labels",
        "Some of the tags",
        f"{done.output}/predictions/",
        f"{done.output}/runs/{done.record['run_id']}.json",
        "SELECT label",
    ):
        assert part in done.out


def test_quiet_says_nothing_and_json_only_the_record(job: Job, archive, tmp_path):
    quiet = job("--quiet", input=archive)
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    asked = job("--json", input=archive, output=tmp_path / "other")
    assert json.loads(asked.out) == asked.record
    assert asked.err == ""


@pytest.mark.parametrize("name", ["out", "o[1]u*t?", "it's"])
def test_the_printed_query_runs_as_printed(job: Job, archive, tmp_path, name):
    job(input=archive, output=tmp_path / name, shard_size=5)  # done again below: counted once
    done = job(input=archive, output=tmp_path / name)
    query = done.out[done.out.index("  SELECT") :]
    rows = duckdb.sql(query).fetchall()
    assert sum(items for _, items, _ in rows) == 11
    assert query.strip() == report.latest_tags_sql(done.record).strip()


def test_the_documented_types_in_duckdb_pandas_and_pyarrow(job: Job, archive):
    output = job(input=archive, run_date="2026-01-31").output
    found = {
        name: kind
        for name, kind, *_ in duckdb.sql(
            f"DESCRIBE SELECT * FROM read_parquet('{output}/embeddings/**/*.parquet', "
            "hive_partitioning = true)"
        ).fetchall()
    }
    assert found == {
        "uri": "VARCHAR", "version": "VARCHAR", "id": "VARCHAR", "modality": "VARCHAR",
        "content_sha256": "VARCHAR", "width": "INTEGER", "height": "INTEGER",
        "text_windows": "INTEGER", "unused": "VARCHAR", "bytes": "BIGINT",
        "embedding": "FLOAT[]", "run_id": "VARCHAR", "embedded_at": "TIMESTAMP WITH TIME ZONE",
        "dt": "DATE", "model": "VARCHAR",
    }  # fmt: skip
    frame = pd.read_parquet(output / "predictions")
    assert frame["rank"].dtype == np.int32
    assert frame["score"].dtype == np.float32
    assert str(frame["tagged_at"].dtype) == "datetime64[us, UTC]"
    assert frame["label"].notna().all()
    schema = ds.dataset(output / "embeddings").schema
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float not null>[32]"
    assert str(schema.field("embedded_at").type) == "timestamp[us, tz=UTC]"


# What goes wrong, and what is said.


def test_an_empty_folder_is_a_run_of_nothing(job: Job, tmp_path):
    (tmp_path / "empty").mkdir()
    done = job(input=tmp_path / "empty")
    assert done.status == 0
    assert f"Nothing to tag: no pictures in {tmp_path / 'empty'}" in done.out
    assert done.record["counts"] == {
        "listed": 0, "reused": 0, "embedded": 0, "duplicates": 0, "failed": 0,
    }  # fmt: skip
    assert done.record["status"] == "finished"


def refused(done, message: str) -> None:
    assert done.status == 2
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.startswith("device:")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("beamtag tag: error: ")
    assert message in lines[0]
    assert not done.output.is_dir() or not (done.output / "embeddings").exists()


def test_a_missing_folder(job: Job, tmp_path):
    refused(job(input=tmp_path / "missing"), "does not exist")
    refused(job(input=tmp_path / "missing" / "*.jpg"), "does not exist")


def test_an_unknown_store(job: Job):
    refused(job(input="nostore://bucket/*"), "cannot look at --input=nostore://bucket/*")


def test_an_unreadable_label_file(job: Job, archive, tmp_path):
    refused(job(input=archive, labels=tmp_path / "none.yaml"), "no label file")
    refused(job(input=archive, labels=tmp_path), "cannot read")


def test_an_unknown_model(job: Job, archive):
    refused(job(input=archive, model="ViT-B-99"), "no model is called 'ViT-B-99'")
    refused(job(input=archive, model="local-dir:/nowhere"), "no open_clip_config.json")


def test_a_device_that_is_missing(job: Job, archive, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(job(input=archive, device="cuda"), "no CUDA device")


def test_an_unknown_runner(job: Job, archive):
    refused(job(input=archive, runner="Nope"), "Nope")


def test_an_empty_flag_is_refused(job: Job, archive):
    for flag in ("input", "output", "labels", "model", "pretrained"):
        done = job(f"--{flag}=", input=archive)
        assert done.status == 2
        assert done.err.count("\n") == 1
    assert not os.path.exists("/embeddings")


def test_an_object_that_several_inputs_name_is_one_item(job: Job, archive):
    done = job(
        f"--input={archive}", f"--input={archive}/a/*.jpg", f"--input={archive}/", input=archive
    )
    assert done.record["counts"]["listed"] == 12
    assert len(done.table("embeddings")) == 11


def test_an_unknown_option(job: Job, archive):
    refused(job(input=archive, treshold=0.5), "unknown option --treshold=0.5")


def test_an_output_that_cannot_be_written(job: Job, archive, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    refused(job(input=archive, output=file / "out"), f"cannot write to {file / 'out'}")
    refused(job(input=archive, output=Path("/proc/beamtag")), "cannot write to /proc/beamtag")


def test_a_label_set_of_one_label(job: Job, archive, tmp_path):
    one = tmp_path / "one.yaml"
    one.write_text("name: one\nlabels: [dog]\n")
    refused(job(input=archive, labels=one), "softmax over a single label always scores 1.0")
    one.write_text("name: one\nlabels: [dog]\nactivation: cosine\n")
    done = job(input=archive, labels=one)
    assert done.status == 0
    assert {row["label"] for row in done.table("predictions")} == {"dog"}


def test_hostile_pictures_are_rows(job: Job, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "pixel.png").write_bytes(encoded(Image.new("RGB", (1, 1)), "PNG"))
    (folder / "text.jpg").write_text("This is not a picture.")
    (folder / "empty.jpg").write_bytes(b"")

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(60_001)) for _ in range(20_000)) + packer.flush()
    (folder / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded(picture()))
    done = job(input=folder)
    assert done.status == 0, done.err
    assert [Path(row["uri"]).name for row in done.table("embeddings")] == ["pixel.png"]
    assert {Path(row["uri"]).name: row["reason"] for row in done.table("failures")} == {
        "bomb.png": "too_many_pixels",
        "caf\\xe9.jpg": "not_found",
        "empty.jpg": "empty",
        "text.jpg": "not_an_image",
    }


def test_a_disk_that_fills_up_is_a_failed_run(job: Job, archive, monkeypatch):
    def full(url: str, content: bytes, run_id: str, *more: object) -> None:
        if url.endswith(".parquet"):
            raise OSError(28, "No space left on device")
        publish(url, content, run_id, *more)

    monkeypatch.setattr("transforms.writing.publish", full)
    done = job(input=archive)
    assert done.status == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("beamtag tag: failed: OSError: [Errno 28] No space left on device")
    assert "WriteShards" in last
    assert done.record["status"] == "failed"
    assert "No space left" in done.record["error"]
    monkeypatch.undo()
    assert job(input=archive).status == 0


def test_an_interrupted_run_says_so_in_one_line(job: Job, archive, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transforms.duplicates.embed_batch", interrupt)
    done = job(input=archive)
    assert done.status == 1
    # The model is loaded when the first batch comes.
    assert done.err.splitlines()[1:] == [
        "beamtag tag: failed: interrupted; what is written is kept, and the same command goes on "
        "from it"
    ]
    assert done.record["status"] == "interrupted"


def test_a_real_interrupt(archive, vit, labels, tmp_path):
    picture = (archive / "a" / "00000.jpg").read_bytes()
    for number in range(4000):  # seconds of work, so that the signal meets it
        (archive / f"{number}.jpg").write_bytes(picture + number.to_bytes(2, "big"))
    command = [
        sys.executable, "-m", "pipelines.tag", f"--input={archive}", f"--labels={labels}",
        f"--output={tmp_path / 'out'}", f"--model=local-dir:{vit}", "--batch_size=8",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("out/runs/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("beamtag tag: failed: interrupted")
    assert "Traceback" not in err
    (record,) = tmp_path.glob("out/runs/*.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_account_that_does_not_balance_is_a_failed_run(job: Job, archive, monkeypatch):
    real = writing.write_shard

    def forgetful(batches, *arguments) -> Account:
        first = batches[0].embedded
        lost = replace(first, embeddings=first.embeddings.slice(1))
        return real([replace(batches[0], embedded=lost), *batches[1:]], *arguments)

    monkeypatch.setattr(writing, "write_shard", forgetful)
    done = job(input=archive)
    assert done.status == 1
    assert (
        "12 items were listed, but 0 reused + 10 embedded + 0 duplicates + 1 failed do not add up"
    ) in done.err
    assert done.record["status"] == "unbalanced"
    (shard_id,) = done.record["unbalanced_shards"]
    assert f"by shard: {shard_id} (+1)" in done.err
    assert any(f"shard-{shard_id}" in file for file in done.record["files"])


def test_direct_runner_means_a_local_run_and_says_so(job: Job, archive):
    done = job(input=archive, runner="DirectRunner")
    assert done.status == 0
    assert "DirectRunner means a local run on FnApiRunner" in done.err


def test_a_process_of_its_own(archive, vit, labels, tmp_path):
    """As cron starts it: another directory, relative paths, no terminal."""
    shutil.copy(labels, tmp_path / "l.yaml")
    done = subprocess.run(
        [
            sys.executable, "-m", "pipelines.tag", "--input=archive", "--labels=l.yaml",
            "--output=out", f"--model=local-dir:{vit}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "embedded  11" in done.stdout
    # Nothing of Beam's or torch's noise: only what auto chose, and on a slow machine how far it is.
    (line,) = [line for line in done.stderr.splitlines() if " items" not in line]
    assert line.startswith("device: auto chose")


def test_a_model_on_object_storage(job: Job, archive, vit, tmp_path, monkeypatch):
    monkeypatch.setenv("BEAMTAG_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for file in vit.iterdir():
        store.pipe_file(f"/models/stored/{file.name}", file.read_bytes())
    done = job(input=archive, model="memory://models/stored")
    assert done.status == 0, done.err
    assert done.record["model_id"].startswith("stored-")


def test_two_models_never_share_a_folder(job: Job, archive, tmp_path):
    other = make_checkpoint(tmp_path / "other" / "vit", seed=5)
    job(input=archive)
    done = job(input=archive, model=f"local-dir:{other}")
    assert done.status == 0
    assert len(list((done.output / "embeddings").iterdir())) == 2
