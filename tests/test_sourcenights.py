"""The job every night on what only reading tells of: tars, and manifests without versions."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
from conftest import Job, encoded, picture, write_pictures
from faulty import Faulty, faulty_server
from nights import asked_for, files, night, rows, uris
from packing import pack
from servers import CLIENTS


def test_a_tar_is_read_until_it_is_done(job: Job, tmp_path, monkeypatch):
    shelf = tmp_path / "store" / "archive" / "in"
    shelf.mkdir(parents=True)
    members = [(f"{number}.jpg", encoded(picture(seed=number))) for number in range(5)]
    members.insert(1, ("bad.jpg", b"no picture"))
    (shelf / "set.tar").write_bytes(pack(members))
    (shelf / "down.tar").write_bytes(pack([("x.jpg", encoded(picture(seed=9)))]))
    for name, value in CLIENTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("transforms.fetching.TRIES", 2)
    days = iter(range(1, 9))

    def run(server: Faulty):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.reset()
        done = night(
            job, input="s3://archive/in/*.tar", shard_size=2, run_date=f"2026-01-0{next(days)}"
        )
        return done, {name.removeprefix("in/") for name in asked_for(server, "archive")}

    failing = {"faults": 1.0, "kinds": ["503"], "most": 99, "only": r"/down\.tar"}
    with faulty_server(folder=tmp_path / "store", **failing) as server:
        first, _ = run(server)
    assert first.counts == (7, 0, 5, 0, 2)
    output = Path(first.output)
    with faulty_server(folder=tmp_path / "store", only="", count_paths=True) as server:
        second, read = run(server)
        assert read == {"down.tar"}
        assert second.counts == (7, 5, 1, 0, 1)
        whole = {row["uri"]: row["run_id"] for row in rows(output, "embeddings")}
        assert len(whole) == 6
        last, read = run(server)
        assert (read, last.counts) == (set(), (7, 6, 0, 0, 1))
        assert last.record["model"]["loaded"] == []
        assert "no model was loaded" in last.out

        # As a run leaves it that is killed in the tar: the last part, and half of the one before.
        parts = sorted(path for path in output.rglob("*.parquet") if "2026-01-01" in str(path))
        lost = [path for path in parts if path.stem.endswith("-0002")]
        lost += [path for path in parts if path.stem.endswith("-0001")
                 and "embeddings" not in str(path)]  # fmt: skip
        assert len(lost) == 5
        for path in lost:
            path.unlink()
        left = {row["uri"] for row in rows(output, "embeddings")}
        done, read = run(server)
        assert read == {"set.tar"}
        assert done.counts == (7, len(left), 6 - len(left), 0, 1)
        # What was there is not made again, and all is there once.
        again = {row["uri"]: row["run_id"] for row in rows(output, "embeddings")}
        assert len(rows(output, "embeddings")) == 6
        assert again == {
            uri: run_id if uri in left else done.record["run_id"] for uri, run_id in whole.items()
        }
        assert sorted(uris(output, "predictions")) == sorted(2 * uris(output))
        last, read = run(server)
        assert (read, last.counts) == (set(), (7, 6, 0, 0, 1))

        # Other bytes are another tar, whose members have vectors already.
        (shelf / "set.tar").write_bytes(pack([*members, ("new.txt", b"a dog in the grass")]))
        done, read = run(server)
        assert (read, done.counts) == ({"set.tar"}, (8, 1, 1, 5, 1))


def test_a_manifest_that_tells_no_versions(job: Job, tmp_path):
    web = write_pictures(tmp_path / "web", 3, width=80)
    (web / "bad.jpg").write_bytes(b"no picture")
    (web / "words.txt").write_text("a house by the sea")
    manifest = tmp_path / "list.csv"
    output = tmp_path / "out"

    def listed(server: Faulty, **texts: str) -> Path:
        told = {"00000.jpg": "", "00001.jpg": "a dog", "00002.jpg": "a cat", "words.txt": ""}
        told |= {"bad.jpg": "", "gone.jpg": "", "lost.jpg": "a tree", **texts}
        lines = [f"{server.url}/{name},{text}" for name, text in told.items()]
        manifest.write_text("\n".join(["uri,text", *lines, ",only words"]))
        return manifest

    with faulty_server(folder=web) as server:
        first = night(job, input=listed(server), shard_size=3, run_date="2026-01-01")
        assert first.counts == (8, 0, 6, 0, 2)
        assert first.record["modalities"] == {"text": 3, "pair": 2, "image": 1}
        before = files(output)
        # They have to be read for their versions; nothing comes of it, failures neither.
        second = night(job, input=listed(server), shard_size=3, run_date="2026-01-02")
        assert (second.counts, second.record["known_failures"]) == ((8, 6, 0, 0, 2), 2)
        assert files(output) == before
        (web / "00000.jpg").write_bytes(encoded(picture(seed=40)))
        (web / "gone.jpg").write_bytes(encoded(picture(seed=41)))
        third = night(job, input=listed(server, **{"00002.jpg": "a car"}), run_date="2026-01-03")
        assert third.counts == (8, 4, 3, 0, 1)
        # A half that is there at last makes another item of it, with a vector of both.
        (web / "lost.jpg").write_bytes(encoded(picture(seed=42)))
        fourth = night(job, input=manifest, run_date="2026-01-04")
        assert fourth.counts == (8, 6, 1, 0, 1)
    found = [(os.path.basename(row["uri"]), row["modality"], row["unused"])
             for row in rows(output, "embeddings")]  # fmt: skip
    assert sorted(found, key=str) == sorted(
        [
            *[("00000.jpg", "image", None)] * 2, ("00001.jpg", "pair", None),
            *[("00002.jpg", "pair", None)] * 2, ("gone.jpg", "image", None),
            ("list.csv#8", "text", None), ("lost.jpg", "text", "image: not_found"),
            ("lost.jpg", "pair", None), ("words.txt", "text", None),
        ],
        key=str,
    )  # fmt: skip
    items = [(row["uri"], row["version"]) for row in rows(output, "embeddings")]
    assert len(set(items)) == len(items)
    assert sorted(uris(output, "failures")) == ["bad.jpg", "gone.jpg"]
